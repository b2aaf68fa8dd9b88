-- Unfinished batches of which some of the insert's targets hold rows and others do not. Every slice
-- of a burst is large enough to have rows for each of them.
WITH unfinished AS
(
    SELECT DISTINCT batch_id FROM ops.ingest_ledger WHERE state = 'open' AND source = {source:String}
)
SELECT count() AS batches
FROM
(
    SELECT batch_id, uniqExact(target) AS targets
    FROM
    (
        SELECT batch_id, 'events' AS target FROM raw.product_telemetry_events_storage WHERE batch_id IN (unfinished)
        UNION ALL
        SELECT batch_id, 'letters' FROM raw.dead_letters WHERE batch_id IN (unfinished)
        UNION ALL
        SELECT batch_id, 'counts' FROM ops.slice_counts WHERE batch_id IN (unfinished)
        UNION ALL
        SELECT batch_id, 'touches' FROM ops.touches WHERE batch_id IN (unfinished)
    )
    GROUP BY batch_id
    HAVING targets < 4
)
