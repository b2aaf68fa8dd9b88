-- Batches that hold copies of this batch's events and landed too late for this one to see them:
-- claimed while it might still land, and not finished before it was claimed.
WITH (SELECT min(claimed_at) FROM ops.slice_intents WHERE batch_id = {batch_id:UInt64}) AS first_claimed_at
SELECT
    batch_id, attempt,
    batch_id IN (SELECT batch_id FROM ops.slice_results) AS is_settled
FROM raw.product_telemetry_events_storage
WHERE batch_id IN
(
    SELECT batch_id
    FROM ops.slice_intents
    WHERE claimed_at > first_claimed_at - toIntervalSecond({landing_seconds:UInt32})
        AND batch_id != {batch_id:UInt64}
        AND batch_id NOT IN (SELECT batch_id FROM ops.slice_results WHERE finished_at < first_claimed_at)
)
    AND (event_id, name, if(toUnixTimestamp64Milli(claimed_occurred_at) = 0, occurred_at, claimed_occurred_at)) IN
    (
        SELECT
            event_id, name,
            if(toUnixTimestamp64Milli(claimed_occurred_at) = 0, occurred_at, claimed_occurred_at)
        FROM raw.product_telemetry_events_storage
        WHERE batch_id = {batch_id:UInt64}
    )
GROUP BY batch_id, attempt
ORDER BY batch_id, attempt
