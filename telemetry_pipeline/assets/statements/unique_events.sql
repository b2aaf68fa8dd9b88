-- Events that stand more than once in the view.
SELECT count() AS events, count() - uniqExact(event_id) AS doubled
FROM raw.product_telemetry_events
WHERE occurred_at >= now() - INTERVAL 30 DAY
