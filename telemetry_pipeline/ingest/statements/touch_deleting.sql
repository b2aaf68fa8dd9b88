-- The days of a batch's rows, before they are removed: a build that read before this line is stale.
INSERT INTO ops.touches (day, batch_id, attempt, kind, touched_at)
SELECT DISTINCT toDate(occurred_at, {timezone:String}), batch_id, {attempt:UInt16}, 'deleting', now64(3, 'UTC')
FROM raw.product_telemetry_events_storage
WHERE batch_id = {batch_id:UInt64}
