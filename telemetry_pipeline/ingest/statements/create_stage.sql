-- One slice, parsed and judged, in memory and only for the session that reads it. Ids are still
-- edge ids here; they become pseudonyms on the way into raw.landing and are stored nowhere else.
CREATE TEMPORARY TABLE stage
(
    line_number UInt64,
    record_number UInt32,
    reason LowCardinality(String),
    field LowCardinality(String),
    event_name LowCardinality(String),
    service_name LowCardinality(String),
    event_id_text String,
    schema_version LowCardinality(String),
    org_edge_id LowCardinality(String),
    user_edge_id LowCardinality(String),
    session_edge_id LowCardinality(String),
    route_pattern LowCardinality(String),
    claimed_ms UInt64,
    occurred_ms UInt64,
    payload_json String,
    unknown_attributes UInt32,
    record_json String
)
ENGINE = Memory
