-- The next items at or after `start` that can be read: the number of the first, and the end of the run
-- that follows it without a gap, at most max_items and max_bytes long (one item at least).
-- An item whose letter is gone, or does not open with the key at hand, cannot be read. [0, 0): none can.
SELECT min(number) AS first, if(count() = 0, 0, max(number) + 1) AS end
FROM
(
    SELECT
        number,
        toInt64(number) - toInt64(row_number() OVER (ORDER BY number)) AS run,
        min(number) OVER () AS first_number,
        sum(bytes) OVER (ORDER BY number) AS bytes_so_far
    FROM
    (
        SELECT items.number AS number, items.bytes AS bytes
        FROM ops.dead_letter_replay_items AS items
        INNER JOIN raw.dead_letters AS letters
            ON items.batch_id = letters.batch_id AND items.attempt = letters.attempt
            AND items.source_position = letters.source_position
        WHERE items.replay_id = {replay_id:UUID} AND items.number >= {start:UInt64}
            AND letters.payload_key_id = {key_id:String}
            AND isNotNull(tryDecrypt(
                'aes-256-gcm', letters.payload_encrypted, unhex({secret_key_dead_letter:String}),
                letters.payload_nonce, toString(letters.batch_id)
            ))
        ORDER BY number
        LIMIT {max_items:UInt64}
    )
)
WHERE run = toInt64(first_number) - 1 AND (number = first_number OR bytes_so_far <= {max_bytes:UInt64})
