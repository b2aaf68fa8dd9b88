-- The key ids of those letters of items [start, end) that do not open with the key at hand.
SELECT DISTINCT letters.payload_key_id AS key_id
FROM ops.dead_letter_replay_items AS items
INNER JOIN raw.dead_letters AS letters
    ON items.batch_id = letters.batch_id AND items.attempt = letters.attempt
    AND items.source_position = letters.source_position
WHERE items.replay_id = {replay_id:UUID}
    AND items.number >= {start:UInt64} AND items.number < {end:UInt64}
    AND (letters.payload_key_id != {key_id:String} OR isNull(tryDecrypt(
        'aes-256-gcm', letters.payload_encrypted, unhex({secret_key_dead_letter:String}),
        letters.payload_nonce, toString(letters.batch_id)
    )))
ORDER BY key_id
