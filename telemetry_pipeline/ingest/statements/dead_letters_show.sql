-- One letter with its payload (in hex: it may be no text). payload_hex is NULL when it does not open.
SELECT
    concat(toString(batch_id), '-', toString(source_position)) AS letter,
    attempt, reason, field, event_name, source, state, first_ingested_at AS first_seen, ingested_at AS last_seen,
    payload_key_id AS key_id,
    hex(if(
        payload_key_id = {key_id:String},
        tryDecrypt(
            'aes-256-gcm', payload_encrypted, unhex({secret_key_dead_letter:String}), payload_nonce,
            toString(batch_id)
        ),
        NULL
    )) AS payload_hex
FROM ops.dead_letter_states
WHERE batch_id = {batch_id:UInt64} AND source_position = {source_position:UInt64}
