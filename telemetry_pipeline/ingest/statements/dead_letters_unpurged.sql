-- Purges that were cut off: their letters are still there.
SELECT DISTINCT toString(purge_id) AS purge_id
FROM ops.dead_letter_purge_items
WHERE (batch_id, attempt, source_position) IN (SELECT batch_id, attempt, source_position FROM raw.dead_letters)
