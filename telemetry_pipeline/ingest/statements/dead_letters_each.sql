-- Single dead letters, the newest first; no personal value.
SELECT
    concat(toString(batch_id), '-', toString(source_position)) AS letter,
    reason, field, event_name, source, state, first_ingested_at AS first_seen, ingested_at AS last_seen
FROM {{matching}}
ORDER BY ingested_at DESC, batch_id, source_position
LIMIT {most:UInt64}
