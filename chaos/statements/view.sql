-- Every event id of the view that everybody reads, with its copies.
SELECT toString(event_id) AS id, count() AS copies
FROM raw.product_telemetry_events
GROUP BY event_id
