-- The days of a batch, once it is checked: a build that read before this line is stale. They stand
-- in the touches that landed with the rows, and in those of a removal: a day may have lost its rows.
INSERT INTO ops.touches (day, batch_id, attempt, kind, touched_at)
SELECT DISTINCT day, batch_id, {attempt:UInt16}, 'settled', now64(3, 'UTC')
FROM ops.touches
WHERE batch_id = {batch_id:UInt64} AND kind IN ('landed', 'deleting')
