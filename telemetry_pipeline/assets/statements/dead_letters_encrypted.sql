-- Dead letters whose payload is not encrypted, or that have no reason.
SELECT
    count() AS dead_letters,
    countIf(reason = '' OR payload_encrypted = '' OR length(payload_nonce) != 12 OR payload_key_id = '') AS plain
FROM raw.dead_letters
