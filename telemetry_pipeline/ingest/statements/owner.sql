-- The owner of a claim: the first row for its key, whatever a deduplication window let in later.
SELECT
    claim_id,
    end_offset,
    toUnixTimestamp64Milli(slice_time) AS slice_time_ms,
    toUnixTimestamp64Milli(deadline) AS deadline_ms
FROM ops.slice_intents
WHERE source = {source:String} AND partition = {partition:String} AND epoch = {epoch:UInt32}
    AND start_offset = {start_offset:UInt64} AND attempt = {attempt:UInt16}
ORDER BY claimed_at, claim_id
LIMIT 1
