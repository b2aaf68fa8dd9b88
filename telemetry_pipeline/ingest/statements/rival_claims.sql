-- How many batches may hold copies of this batch's events that neither could see: claimed while
-- this one might still land, and not finished before it was claimed.
WITH (SELECT min(claimed_at) FROM ops.slice_intents WHERE batch_id = {batch_id:UInt64}) AS first_claimed_at
SELECT count()
FROM ops.slice_intents
WHERE claimed_at > first_claimed_at - toIntervalSecond({landing_seconds:UInt32})
    AND batch_id != {batch_id:UInt64}
    AND batch_id NOT IN (SELECT batch_id FROM ops.slice_results WHERE finished_at < first_claimed_at)
