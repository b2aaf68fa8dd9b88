-- What this attempt holds that its rival holds, too. Nothing of a batch that has a result: whoever
-- wakes up late must not take from it.
DELETE FROM raw.product_telemetry_events_storage
WHERE batch_id = {batch_id:UInt64} AND attempt = {attempt:UInt16}
    AND batch_id NOT IN (SELECT batch_id FROM ops.slice_results)
    AND (event_id, name, if(toUnixTimestamp64Milli(claimed_occurred_at) = 0, occurred_at, claimed_occurred_at)) IN
    (
        SELECT
            event_id, name,
            if(toUnixTimestamp64Milli(claimed_occurred_at) = 0, occurred_at, claimed_occurred_at)
        FROM raw.product_telemetry_events_storage
        WHERE batch_id = {rival_id:UInt64}
    )
