-- Slices without a result, at their latest attempt. A claim may be taken over once its deadline,
-- the longest time its insert may run and a margin for clocks are past.
SELECT
    partition, epoch, start_offset, end_offset, attempt, batch_id, bytes_hash, tail_sha256,
    toUnixTimestamp64Milli(slice_time) AS slice_time_ms,
    toUnixTimestamp64Milli(deadline) AS deadline_ms,
    deadline + toIntervalSecond({grace_seconds:UInt32}) < now64(3, 'UTC') AS may_be_taken_over
FROM
(
    SELECT *
    FROM ops.slice_intents
    WHERE source = {source:String}
    ORDER BY claimed_at, claim_id
    LIMIT 1 BY partition, epoch, start_offset, attempt
)
WHERE batch_id NOT IN (SELECT batch_id FROM ops.slice_results WHERE source = {source:String})
ORDER BY partition, epoch, start_offset, attempt DESC
LIMIT 1 BY partition, epoch, start_offset
