-- What this batch holds that its rival holds, too.
DELETE FROM raw.product_telemetry_events_storage
WHERE batch_id = {batch_id:UInt64}
    AND (event_id, name, if(toUnixTimestamp64Milli(claimed_occurred_at) = 0, occurred_at, claimed_occurred_at)) IN
    (
        SELECT
            event_id, name,
            if(toUnixTimestamp64Milli(claimed_occurred_at) = 0, occurred_at, claimed_occurred_at)
        FROM raw.product_telemetry_events_storage
        WHERE batch_id = {rival_id:UInt64}
    )
