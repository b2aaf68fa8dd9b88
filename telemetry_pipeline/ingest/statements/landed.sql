-- What a batch left in each target. The batch is whole when events = counted as accepted and
-- dead_letters = counted as rejected, for all its attempts together.
SELECT
    (SELECT count() FROM raw.product_telemetry_events_storage WHERE batch_id = {batch_id:UInt64}) AS events,
    (SELECT count() FROM raw.dead_letters WHERE batch_id = {batch_id:UInt64}) AS dead_letters,
    sumIf(records, verdict = 'accepted') AS accepted,
    sumIf(records, verdict = 'duplicate') AS duplicates,
    sumMapIf(map(toString(reason), records), verdict = 'rejected') AS rejected,
    sumMapIf(map(toString(reason), records), verdict = 'dropped') AS dropped,
    sum(unknown_attributes) AS unknown_attributes,
    sum(records) AS received,
    uniqExact(attempt) AS attempts
FROM ops.slice_counts
WHERE batch_id = {batch_id:UInt64}
