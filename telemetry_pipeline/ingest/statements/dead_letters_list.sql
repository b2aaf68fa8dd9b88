-- Dead letters by what is wrong with them; no personal value.
SELECT
    reason, field, event_name, source, state,
    count() AS letters,
    min(first_ingested_at) AS first_seen,
    max(ingested_at) AS last_seen
FROM {{matching}}
GROUP BY reason, field, event_name, source, state
ORDER BY letters DESC, reason, field, event_name, source, state
