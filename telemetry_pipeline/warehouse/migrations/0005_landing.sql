-- One insert, four targets: the landing table stores nothing, its views route each judged record.

CREATE TABLE IF NOT EXISTS raw.landing
(
    batch_id UInt64,
    attempt UInt16,
    source_name LowCardinality(String),
    source_partition LowCardinality(String),
    source_position UInt64,
    verdict Enum8('accepted' = 1, 'duplicate' = 2, 'rejected' = 3, 'dropped' = 4),
    reason LowCardinality(String),
    field LowCardinality(String),
    unknown_attributes UInt32,
    org_id_hash UInt64,
    event_id UUID,
    name LowCardinality(String),
    schema_version LowCardinality(String),
    session_id UInt64,
    anonymous_user_id UInt64,
    route_pattern LowCardinality(String),
    payload_json String,
    occurred_at DateTime64(3, 'UTC'),
    reporting_day Date,
    ingested_at DateTime64(3, 'UTC'),
    source LowCardinality(String),
    pseudonym_key_id LowCardinality(String),
    claimed_occurred_at DateTime64(3, 'UTC'),
    precedence UInt64,
    payload_key_id LowCardinality(String),
    payload_nonce String,
    payload_encrypted String
)
ENGINE = Null;

CREATE MATERIALIZED VIEW IF NOT EXISTS raw.landing_to_events TO raw.product_telemetry_events_storage AS
SELECT
    org_id_hash, event_id, name, schema_version, session_id, anonymous_user_id, route_pattern, payload_json,
    occurred_at, ingested_at, source, batch_id, attempt, source_partition, source_position,
    pseudonym_key_id, claimed_occurred_at, precedence
FROM raw.landing
WHERE verdict = 'accepted';

CREATE MATERIALIZED VIEW IF NOT EXISTS raw.landing_to_dead_letters TO raw.dead_letters AS
SELECT
    batch_id, attempt, source_name, source_partition, source_position, reason, field,
    name AS event_name, org_id_hash, anonymous_user_id, session_id, occurred_at, ingested_at,
    payload_key_id, payload_nonce, payload_encrypted
FROM raw.landing
WHERE verdict = 'rejected';

CREATE MATERIALIZED VIEW IF NOT EXISTS raw.landing_to_counts TO ops.slice_counts AS
SELECT
    batch_id, attempt, verdict, reason,
    count() AS records,
    sum(landing.unknown_attributes) AS unknown_attributes
FROM raw.landing
GROUP BY batch_id, attempt, verdict, reason;

CREATE MATERIALIZED VIEW IF NOT EXISTS raw.landing_to_touches TO ops.touches AS
SELECT reporting_day AS day, batch_id, attempt, 'landed' AS kind, count() AS records, max(landing.ingested_at) AS touched_at
FROM raw.landing
WHERE verdict = 'accepted'
GROUP BY day, batch_id, attempt;
