-- Events as they were judged at ingest, and the view everybody reads.

-- 0 and '' stand for "absent" here because a sort key must not be nullable; the view shows NULL.
-- The sort key ends with event_id so that a raced second copy of an event collapses with the
-- first; precedence grows for older batches, so the earliest batch's copy is the one kept.
CREATE TABLE IF NOT EXISTS raw.product_telemetry_events_storage
(
    org_id_hash UInt64,
    event_id UUID,
    name LowCardinality(String),
    schema_version LowCardinality(String),
    session_id UInt64,
    anonymous_user_id UInt64,
    route_pattern LowCardinality(String),
    payload_json String CODEC(ZSTD(1)),
    occurred_at DateTime64(3, 'UTC') CODEC(T64, ZSTD(1)),
    ingested_at DateTime64(3, 'UTC') CODEC(T64, ZSTD(1)),
    source LowCardinality(String),
    batch_id UInt64 CODEC(ZSTD(1)),
    attempt UInt16 CODEC(ZSTD(1)),
    source_partition LowCardinality(String),
    source_position UInt64 CODEC(T64, ZSTD(1)),
    pseudonym_key_id LowCardinality(String),
    claimed_occurred_at DateTime64(3, 'UTC') CODEC(T64, ZSTD(1)),
    precedence UInt64 CODEC(ZSTD(1)),
    -- Ingest counts and heals by batch; a batch stands in few granules until parts merge.
    INDEX by_batch batch_id TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = ReplacingMergeTree(precedence)
PARTITION BY toMonday(occurred_at)
ORDER BY (org_id_hash, toDate(occurred_at), name, anonymous_user_id, session_id, occurred_at, event_id)
TTL toDateTime(occurred_at) + INTERVAL 180 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000;

CREATE VIEW IF NOT EXISTS raw.product_telemetry_events AS
SELECT
    nullIf(stored.org_id_hash, 0) AS org_id_hash,
    stored.event_id AS event_id,
    stored.name AS name,
    stored.schema_version AS schema_version,
    nullIf(stored.session_id, 0) AS session_id,
    nullIf(stored.anonymous_user_id, 0) AS anonymous_user_id,
    nullIf(stored.route_pattern, '') AS route_pattern,
    stored.payload_json AS payload_json,
    stored.occurred_at AS occurred_at,
    stored.ingested_at AS ingested_at,
    nullIf(stored.source, '') AS source,
    stored.batch_id AS batch_id,
    stored.source_partition AS source_partition,
    stored.source_position AS source_position,
    stored.pseudonym_key_id AS pseudonym_key_id,
    if(toUnixTimestamp64Milli(stored.claimed_occurred_at) = 0, NULL, stored.claimed_occurred_at) AS claimed_occurred_at
FROM raw.product_telemetry_events_storage AS stored FINAL;

-- What could not be accepted, encrypted (AES-256-GCM), for 14 days. Pseudonyms found in a record
-- stand in columns of their own, so that an erasure reaches it without the key.
CREATE TABLE IF NOT EXISTS raw.dead_letters
(
    batch_id UInt64,
    attempt UInt16,
    source_name LowCardinality(String),
    source_partition LowCardinality(String),
    source_position UInt64,
    reason LowCardinality(String),
    field LowCardinality(String),
    event_name LowCardinality(String),
    org_id_hash UInt64,
    anonymous_user_id UInt64,
    session_id UInt64,
    occurred_at DateTime64(3, 'UTC'),
    ingested_at DateTime64(3, 'UTC'),
    payload_key_id LowCardinality(String),
    payload_nonce String,
    payload_encrypted String
)
ENGINE = MergeTree
PARTITION BY toMonday(ingested_at)
ORDER BY (reason, ingested_at, batch_id, source_position)
TTL toDateTime(ingested_at) + INTERVAL 14 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000;
