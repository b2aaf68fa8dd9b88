-- The items of a replay: letters nobody judged again yet, oldest first, numbered from 0.
INSERT INTO ops.dead_letter_replay_items
SELECT
    {replay_id:UUID},
    toUInt64(row_number() OVER (ORDER BY first_ingested_at, batch_id, source_position) - 1),
    batch_id, attempt, source_position, length(payload_encrypted), source, first_ingested_at
FROM {{matching}}
WHERE state = 'waiting' AND opens
    AND first_ingested_at >= now64(3, 'UTC') - toIntervalMinute({keep_minutes:UInt32})
