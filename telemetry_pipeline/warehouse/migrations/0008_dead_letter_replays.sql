-- Dead letters that were asked to be judged again, thrown away or looked into. A letter itself never
-- changes: its state follows from these tables and the ledger. None of them holds a personal value.

-- A replay: a frozen choice of letters, landed like any source (its partition is replay_id, offsets are
-- item numbers). This row is written after the items; items without it count for nothing. Replays
-- land one after the other, in the order of commits: the block number, which no clock gives.
CREATE TABLE IF NOT EXISTS ops.dead_letter_replays
(
    replay_id UUID,
    filters String,
    items UInt64,
    requested_by String,
    requested_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY replay_id
SETTINGS enable_block_number_column = 1, non_replicated_deduplication_window = 1000;

-- source, first_ingested_at: where and when the record first arrived, however often it was replayed.
CREATE TABLE IF NOT EXISTS ops.dead_letter_replay_items
(
    replay_id UUID,
    number UInt64,
    batch_id UInt64,
    attempt UInt16,
    source_position UInt64,
    bytes UInt64,
    source LowCardinality(String),
    first_ingested_at DateTime64(3, 'UTC')
)
ENGINE = MergeTree
ORDER BY (replay_id, number)
SETTINGS non_replicated_deduplication_window = 1000;

-- Letters that somebody threw away: listed first, then counted in ops.ledger_adjustments (under the
-- reason 'purge <purge_id>'), then removed.
CREATE TABLE IF NOT EXISTS ops.dead_letter_purge_items
(
    purge_id UUID,
    batch_id UInt64,
    attempt UInt16,
    source_position UInt64,
    requested_by String,
    requested_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (purge_id, batch_id, source_position)
SETTINGS non_replicated_deduplication_window = 1000;

-- Who opened which letter, written before it is opened.
CREATE TABLE IF NOT EXISTS ops.dead_letter_access
(
    accessed_at DateTime64(6, 'UTC'),
    os_user String,
    batch_id UInt64,
    attempt UInt16,
    source_position UInt64
)
ENGINE = MergeTree
ORDER BY accessed_at;

-- Adjustments of dead letters beside those of events: whoever removes letters writes one of these.
ALTER TABLE ops.ledger_adjustments
    MODIFY COLUMN kind Enum8(
        'duplicates_removed' = 1, 'erased' = 2, 'expired' = 3,
        'letters_purged' = 4, 'letters_erased' = 5
    );

-- The slices of replays with what became of them: settled, passed (it holds no letter: they were gone
-- or did not open), lost (it may have landed in part), open.
CREATE VIEW IF NOT EXISTS ops.dead_letter_replay_slices AS
SELECT
    toUUIDOrZero(intents.partition) AS replay_id,
    intents.start_offset AS start_offset,
    intents.end_offset AS end_offset,
    intents.batch_id AS batch_id,
    multiIf(
        (intents.partition, intents.start_offset, intents.end_offset) IN
            (SELECT partition, start_offset, end_offset FROM ops.source_losses WHERE source = 'dead_letters'),
            'lost',
        intents.batch_id IN
            (SELECT batch_id FROM ops.slice_results WHERE source = 'dead_letters' AND received > 0),
            'settled',
        intents.batch_id IN (SELECT batch_id FROM ops.slice_results WHERE source = 'dead_letters'),
            'passed',
        'open'
    ) AS state
FROM
(
    SELECT partition, start_offset, end_offset, batch_id
    FROM ops.slice_intents
    WHERE source = 'dead_letters'
    ORDER BY claimed_at, claim_id
    LIMIT 1 BY partition, start_offset
) AS intents;

-- Every item of every replay, in the state of its slice, or pending before a slice takes it.
CREATE VIEW IF NOT EXISTS ops.dead_letter_replay_progress AS
SELECT
    items.replay_id AS replay_id,
    items.number AS number,
    items.batch_id AS batch_id,
    items.attempt AS attempt,
    items.source_position AS source_position,
    items.source AS source,
    items.first_ingested_at AS first_ingested_at,
    slices.batch_id AS replay_batch_id,
    slices.start_offset AS slice_start,
    if(items.number < slices.end_offset, slices.state, 'pending') AS state
FROM
(
    SELECT * FROM ops.dead_letter_replay_items
    WHERE replay_id IN (SELECT replay_id FROM ops.dead_letter_replays)
) AS items
ASOF LEFT JOIN ops.dead_letter_replay_slices AS slices
    ON items.replay_id = slices.replay_id AND items.number >= slices.start_offset;

-- The dead letters of finished batches, each with its state: waiting, replaying (a replay holds it),
-- replayed (it was judged again). Letters listed for removal are as good as gone.
CREATE VIEW IF NOT EXISTS ops.dead_letter_states AS
WITH
    progress AS
    (
        SELECT batch_id, attempt, source_position, groupUniqArray(state) AS states
        FROM ops.dead_letter_replay_progress
        GROUP BY batch_id, attempt, source_position
    ),
    -- A letter that a replay left is on the line of its slice that its item was.
    origins AS
    (
        SELECT replay_batch_id, number - slice_start AS line_number, source, first_ingested_at
        FROM ops.dead_letter_replay_progress
        WHERE state IN ('settled', 'lost')
    )
SELECT
    letters.batch_id AS batch_id,
    letters.attempt AS attempt,
    letters.source_position AS source_position,
    letters.reason AS reason,
    letters.field AS field,
    letters.event_name AS event_name,
    letters.ingested_at AS ingested_at,
    letters.payload_key_id AS payload_key_id,
    letters.payload_nonce AS payload_nonce,
    letters.payload_encrypted AS payload_encrypted,
    if(origins.source = '', letters.source_name, origins.source) AS source,
    if(origins.source = '', letters.ingested_at, origins.first_ingested_at) AS first_ingested_at,
    multiIf(
        has(progress.states, 'settled'), 'replayed',
        hasAny(progress.states, ['open', 'pending']), 'replaying',
        'waiting'
    ) AS state
FROM
(
    SELECT * FROM raw.dead_letters
    WHERE batch_id IN (SELECT batch_id FROM ops.slice_results)
        AND (batch_id, attempt, source_position) NOT IN
            (SELECT batch_id, attempt, source_position FROM ops.dead_letter_purge_items)
) AS letters
LEFT JOIN progress
    ON letters.batch_id = progress.batch_id AND letters.attempt = progress.attempt
    AND letters.source_position = progress.source_position
LEFT JOIN origins
    ON letters.batch_id = origins.replay_batch_id
    AND bitShiftRight(letters.source_position, 24) = origins.line_number;
