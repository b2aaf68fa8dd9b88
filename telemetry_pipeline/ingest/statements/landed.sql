-- What a batch left in each target, and what its own counts say. `attempts` is 0 when there are no
-- counts, and more than 1 only when a removal was cut off.
WITH (SELECT max(attempt) FROM ops.slice_counts WHERE batch_id = {batch_id:UInt64}) AS last_attempt
SELECT
    last_attempt AS attempt,
    uniqExact(counts.attempt) AS attempts,
    (SELECT count() FROM raw.product_telemetry_events_storage WHERE batch_id = {batch_id:UInt64}) AS events,
    (
        SELECT sumMap(map(toString(reason), toUInt64(1)))
        FROM raw.dead_letters
        WHERE batch_id = {batch_id:UInt64}
    ) AS dead_letters,
    (
        SELECT sum(records)
        FROM ops.touches
        WHERE batch_id = {batch_id:UInt64} AND attempt = last_attempt AND kind = 'landed'
    ) AS touched,
    sum(records) AS received,
    sumIf(records, verdict = 'accepted') AS accepted,
    sumIf(records, verdict = 'duplicate') AS duplicates,
    sumMapIf(map(toString(reason), records), verdict = 'rejected') AS rejected,
    sumMapIf(map(toString(reason), records), verdict = 'dropped') AS dropped,
    sum(unknown_attributes) AS unknown_attributes
FROM ops.slice_counts AS counts
WHERE batch_id = {batch_id:UInt64}
