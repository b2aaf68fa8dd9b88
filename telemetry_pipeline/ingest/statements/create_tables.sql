-- What one slice passes through: temporary tables of the loader's session, in memory, so that raw
-- ids of a source that hashes on read (they stand in `parsed` alone) reach no table on a disk.

-- Log records as they came. `shape` stands for everything that is alike in many records: the
-- event's name and, in order, the keys and kinds of its attributes; `texts` are their values.
CREATE TEMPORARY TABLE IF NOT EXISTS parsed
(
    position UInt64,
    service_name LowCardinality(String),
    time_ns UInt64,
    observed_ns UInt64,
    texts Array(String),
    shape UInt64,
    shape_text LowCardinality(String)
)
ENGINE = Memory;

-- What the contract says of every shape this session has met; see ingest/shapes.py.
CREATE TEMPORARY TABLE IF NOT EXISTS shapes
(
    {{shape_columns}}
)
ENGINE = Memory;

-- Records with their verdict so far.
CREATE TEMPORARY TABLE IF NOT EXISTS stage
(
    position UInt64,
    reason LowCardinality(String),
    event_name LowCardinality(String),
    service_name LowCardinality(String),
    event_id UUID,
    schema_version LowCardinality(String),
    org_id_hash UInt64,
    anonymous_user_id UInt64,
    session_id UInt64,
    route_pattern LowCardinality(String),
    claimed_ms UInt64,
    occurred_ms UInt64,
    payload_json String,
    unknown_attributes UInt32,
    bad_value UInt16,
    raw_id_key LowCardinality(String)
)
ENGINE = Memory;

-- Records whose event id stands in the warehouse or earlier in the slice.
CREATE TEMPORARY TABLE IF NOT EXISTS repeats (position UInt64, is_conflict UInt8) ENGINE = Memory;

-- Lines of the slice that hold no record.
CREATE TEMPORARY TABLE IF NOT EXISTS problems
(
    position UInt64,
    reason LowCardinality(String),
    line String
)
ENGINE = Memory;

-- Dead letters of the slice, encrypted.
CREATE TEMPORARY TABLE IF NOT EXISTS letters
(
    position UInt64,
    reason LowCardinality(String),
    field LowCardinality(String),
    payload_nonce String,
    payload_encrypted String
)
ENGINE = Memory;
