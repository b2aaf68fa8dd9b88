-- The ingest ledger: what was claimed, what came of it, what was lost, who removed rows later.
-- None of these tables is partitioned or deleted from.

-- A claim. Its key is (source, partition, epoch, start_offset, attempt); the insert carries that
-- key as its deduplication token, and the owner is the first row for the key on read-back.
CREATE TABLE IF NOT EXISTS ops.slice_intents
(
    source LowCardinality(String),
    partition String,
    epoch UInt32,
    start_offset UInt64,
    end_offset UInt64,
    attempt UInt16,
    batch_id UInt64,
    claim_id UUID,
    run_id String,
    slice_time DateTime64(3, 'UTC'),
    deadline DateTime64(3, 'UTC'),
    contract_hash String,
    statement_hash String,
    pseudonym_key_id LowCardinality(String),
    erasure_epoch UInt64,
    consent_epoch UInt64,
    edge_link_epoch UInt64,
    bytes_sha256 String,
    tail_sha256 String,
    claimed_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (source, partition, epoch, start_offset, attempt, claimed_at)
SETTINGS non_replicated_deduplication_window = 10000;

-- The end of a slice. received = accepted + duplicates + sum(rejected) + sum(dropped).
CREATE TABLE IF NOT EXISTS ops.slice_results
(
    source LowCardinality(String),
    partition String,
    epoch UInt32,
    start_offset UInt64,
    end_offset UInt64,
    attempt UInt16,
    batch_id UInt64,
    received UInt64,
    accepted UInt64,
    duplicates UInt64,
    rejected Map(LowCardinality(String), UInt64),
    dropped Map(LowCardinality(String), UInt64),
    unknown_attributes UInt64,
    finished_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (source, partition, epoch, start_offset, attempt)
SETTINGS non_replicated_deduplication_window = 10000;

-- Rows of a batch that somebody removed after its result, written before they are removed.
CREATE TABLE IF NOT EXISTS ops.ledger_adjustments
(
    batch_id UInt64,
    kind Enum8('duplicates_removed' = 1, 'erased' = 2, 'expired' = 3),
    records UInt64,
    reason String,
    adjusted_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (batch_id, adjusted_at)
SETTINGS non_replicated_deduplication_window = 10000;

-- Bytes that can never be ingested: truncated, vanished, changed under a claim.
CREATE TABLE IF NOT EXISTS ops.source_losses
(
    source LowCardinality(String),
    partition String,
    epoch UInt32,
    start_offset UInt64,
    end_offset UInt64,
    reason LowCardinality(String),
    detected_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (source, partition, epoch, start_offset, reason)
SETTINGS non_replicated_deduplication_window = 10000;

-- Append-only log of what may have changed a day (in the reporting time zone). A day's version is
-- (count, xor of hashes) over its rows. records: events of the batch on that day when it landed.
CREATE TABLE IF NOT EXISTS ops.touches
(
    day Date,
    batch_id UInt64,
    attempt UInt16,
    kind Enum8('landed' = 1, 'settled' = 2, 'deleting' = 3),
    records UInt64,
    touched_at DateTime64(3, 'UTC')
)
ENGINE = MergeTree
ORDER BY (day, batch_id, attempt, kind)
SETTINGS non_replicated_deduplication_window = 10000;

-- Records of a batch by verdict and reason, written by the same insert as the rows.
CREATE TABLE IF NOT EXISTS ops.slice_counts
(
    batch_id UInt64,
    attempt UInt16,
    verdict Enum8('accepted' = 1, 'duplicate' = 2, 'rejected' = 3, 'dropped' = 4),
    reason LowCardinality(String),
    records UInt64,
    unknown_attributes UInt64
)
ENGINE = MergeTree
ORDER BY (batch_id, attempt, verdict, reason)
SETTINGS non_replicated_deduplication_window = 10000;

-- The contract (compiled catalogue and policy) that a batch ran under, by its hash.
CREATE TABLE IF NOT EXISTS ops.contracts
(
    contract_hash String,
    contract_json String CODEC(ZSTD(3)),
    first_used_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY contract_hash;

-- Features and funnels of telemetry.yaml as rows, so that dbt sees a change without a new manifest.
CREATE TABLE IF NOT EXISTS ops.reporting_config_versions
(
    version DateTime64(6, 'UTC'),
    section LowCardinality(String),
    item LowCardinality(String),
    position UInt16,
    event_name LowCardinality(String),
    flag_key LowCardinality(String)
)
ENGINE = MergeTree
ORDER BY (version, section, item, position)
SETTINGS non_replicated_deduplication_window = 100;

CREATE VIEW IF NOT EXISTS ops.reporting_config AS
SELECT section, item, position, event_name, flag_key
FROM ops.reporting_config_versions
WHERE version = (SELECT max(version) FROM ops.reporting_config_versions);

-- The class of every catalogued event (technical | business), for the marts.
CREATE TABLE IF NOT EXISTS ops.catalog_events
(
    name LowCardinality(String),
    class LowCardinality(String),
    owner LowCardinality(String),
    updated_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(updated_at)
ORDER BY name;

-- Every claim with what became of it: the view to read when something looks stuck.
CREATE VIEW IF NOT EXISTS ops.ingest_ledger AS
SELECT
    intents.source AS source,
    intents.partition AS partition,
    intents.epoch AS epoch,
    intents.start_offset AS start_offset,
    intents.end_offset AS end_offset,
    intents.attempt AS attempt,
    intents.batch_id AS batch_id,
    intents.run_id AS run_id,
    intents.slice_time AS slice_time,
    intents.deadline AS deadline,
    intents.contract_hash AS contract_hash,
    intents.pseudonym_key_id AS pseudonym_key_id,
    multiIf(
        results.batch_id != 0, 'settled',
        (intents.batch_id, intents.attempt) NOT IN (SELECT batch_id, max(attempt) FROM ops.slice_intents GROUP BY batch_id),
            'superseded',
        (intents.source, intents.partition, intents.epoch, intents.start_offset, intents.end_offset) IN
            (SELECT source, partition, epoch, start_offset, end_offset FROM ops.source_losses),
            'lost',
        'open'
    ) AS state,
    results.received AS received,
    results.accepted AS accepted,
    results.duplicates AS duplicates,
    results.rejected AS rejected,
    results.dropped AS dropped,
    intents.claimed_at AS claimed_at,
    results.finished_at AS finished_at
FROM ops.slice_intents AS intents
LEFT JOIN ops.slice_results AS results
    ON intents.batch_id = results.batch_id AND intents.attempt = results.attempt;
