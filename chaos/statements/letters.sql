-- Dead letters in clear: the events in them are made up.
SELECT
    decrypt('aes-256-gcm', payload_encrypted, unhex({secret_key_dead_letter:String}), payload_nonce, toString(batch_id))
        AS payload
FROM raw.dead_letters
