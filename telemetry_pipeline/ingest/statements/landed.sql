-- What a batch left in each target, and what its own counts say. `attempts` is 0 when there are no
-- counts, and more than 1 only when a removal was cut off.
WITH
    counted AS
    (
        SELECT
            max(counts.attempt) AS attempt,
            uniqExact(counts.attempt) AS attempts,
            sum(records) AS received,
            sumIf(records, verdict = 'accepted') AS accepted,
            sumIf(records, verdict = 'duplicate') AS duplicates,
            sumMapIf(map(toString(reason), records), verdict = 'rejected') AS rejected,
            sumMapIf(map(toString(reason), records), verdict = 'dropped') AS dropped,
            sum(unknown_attributes) AS unknown_attributes
        FROM ops.slice_counts AS counts
        WHERE batch_id = {batch_id:UInt64}
    ),
    events AS
    (
        SELECT count() AS events FROM raw.product_telemetry_events_storage WHERE batch_id = {batch_id:UInt64}
    ),
    letters AS
    (
        SELECT sumMap(map(toString(reason), toUInt64(1))) AS dead_letters
        FROM raw.dead_letters
        WHERE batch_id = {batch_id:UInt64}
    ),
    touched AS
    (
        SELECT sumMap(map(attempt, records)) AS touched_by_attempt
        FROM ops.touches
        WHERE batch_id = {batch_id:UInt64} AND kind = 'landed'
    )
SELECT
    attempt, attempts, events, dead_letters, touched_by_attempt[attempt] AS touched,
    received, accepted, duplicates, rejected, dropped, unknown_attributes
FROM counted, events, letters, touched
