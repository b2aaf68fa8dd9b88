-- What left for which destination, under which ids, and what still has to.
-- The views take parameters: destination (its name in telemetry.yaml) and names (the allowlist as
-- one RE2 pattern over event names).

-- A subject's id at a destination: random, so it names nobody outside this table. The first row
-- for a subject is the id, by block number: that is the order of commits, which no clock gives.
CREATE TABLE IF NOT EXISTS privacy.destination_ids
(
    destination LowCardinality(String),
    subject_kind Enum8('user' = 1, 'organisation' = 2, 'session' = 3, 'device' = 4),
    subject UInt64,
    destination_id String,
    minted_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (destination, subject_kind, subject)
SETTINGS enable_block_number_column = 1;

CREATE VIEW IF NOT EXISTS privacy.current_destination_ids AS
SELECT destination, subject_kind, subject, argMin(minted.destination_id, minted._block_number) AS destination_id
FROM privacy.destination_ids AS minted
GROUP BY destination, subject_kind, subject;

-- One row a state; the row with the highest version is the event's state. 'sending' is written
-- before a request leaves, 'returned' when the destination said that it took nothing: both are due.
-- A settled state outranks both whenever they were written, so a second exporter cannot make an
-- accepted event due again. in_doubt_since is when the event was first sent without a clear answer
-- (1970: never).
-- It holds no pseudonym: a subject's rows are found through privacy.destination_ids.
-- It outlives the raw event by a day, or the event would be due again on its last day.
CREATE TABLE IF NOT EXISTS ops.export_outbox
(
    destination LowCardinality(String),
    event_id UUID,
    insert_id String CODEC(ZSTD(1)),
    device_id String CODEC(ZSTD(1)),
    user_id String CODEC(ZSTD(1)),
    organisation_id String CODEC(ZSTD(1)),
    occurred_at DateTime64(3, 'UTC') CODEC(T64, ZSTD(1)),
    batch_id UInt64 CODEC(ZSTD(1)),
    state Enum8('sending' = 1, 'returned' = 2, 'refused' = 3, 'accepted' = 4),
    reason LowCardinality(String),
    request_id UUID CODEC(ZSTD(1)),
    erasure_epoch UInt64 CODEC(ZSTD(1)),
    deadline DateTime64(3, 'UTC') CODEC(T64, ZSTD(1)),
    in_doubt_since DateTime64(6, 'UTC') CODEC(T64, ZSTD(1)),
    recorded_at DateTime64(6, 'UTC') CODEC(T64, ZSTD(1)),
    version UInt64
        DEFAULT if(state IN ('refused', 'accepted'), toUInt64(state), 1) * 10000000000000000
            + toUnixTimestamp64Micro(recorded_at)
        CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (destination, event_id)
TTL toDateTime(occurred_at) + INTERVAL 181 DAY DELETE;

-- Days of which nothing is left to export, under one allowlist and one version of the day. A mark
-- saves a scan and decides nothing: what is due is always anti-joined with the outbox.
CREATE TABLE IF NOT EXISTS ops.export_marks
(
    destination LowCardinality(String),
    allowlist LowCardinality(String),
    day Date,
    touches UInt64,
    touches_xor UInt64,
    marked_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(marked_at)
ORDER BY (destination, allowlist, day);

-- Only touches of batches with a result make up the version, or a result that comes after its last
-- touch would stay hidden behind a mark. A heal adds touches and lifts the mark.
CREATE VIEW IF NOT EXISTS ops.export_due_days AS
WITH versions AS
(
    SELECT
        day,
        count() AS touches,
        groupBitXor(cityHash64(batch_id, attempt, kind, touched_at)) AS touches_xor
    FROM ops.touches
    WHERE batch_id IN (SELECT batch_id FROM ops.slice_results)
    GROUP BY day
)
SELECT hex(sipHash128({names:String})) AS allowlist, day, touches, touches_xor
FROM versions
WHERE (day, touches, touches_xor) NOT IN
(
    SELECT day, touches, touches_xor
    FROM ops.export_marks
    WHERE destination = {destination:String} AND allowlist = hex(sipHash128({names:String}))
);

-- Settled events of those days that the allowlist lets through. Absent subjects are 0. Touches
-- count days in the reporting time zone: a day more on either side holds any zone.
CREATE VIEW IF NOT EXISTS ops.export_allowed AS
SELECT
    event_id, name, schema_version, route_pattern, payload_json, occurred_at, batch_id,
    ifNull(org_id_hash, 0) AS organisation,
    ifNull(anonymous_user_id, 0) AS user,
    ifNull(session_id, 0) AS session
FROM raw.product_telemetry_events
WHERE match(name, {names:String})
    AND batch_id IN (SELECT batch_id FROM ops.slice_results)
    AND toDate(occurred_at, 'UTC') IN
    (
        SELECT arrayJoin([day - 1, day, day + 1])
        FROM ops.export_due_days(destination = {destination:String}, names = {names:String})
    )
    -- Said again as a range, because only a range spares whole partitions.
    AND occurred_at >=
    (
        SELECT toDateTime64(min(day) - 1, 3, 'UTC')
        FROM ops.export_due_days(destination = {destination:String}, names = {names:String})
    )
    AND occurred_at <
    (
        SELECT toDateTime64(max(day) + 2, 3, 'UTC')
        FROM ops.export_due_days(destination = {destination:String}, names = {names:String})
    );

-- What is not settled in the outbox, with the values frozen at first send ('' when never sent) and
-- why it is withheld: '' (due), consent, erasure, or in_doubt: sent without an answer so long ago
-- that the destination no longer recognises a second copy (Amplitude: 7 days, less a day).
CREATE VIEW IF NOT EXISTS ops.export_candidates AS
SELECT
    allowed.event_id AS event_id,
    allowed.name AS name,
    allowed.schema_version AS schema_version,
    allowed.route_pattern AS route_pattern,
    allowed.payload_json AS payload_json,
    allowed.occurred_at AS occurred_at,
    allowed.batch_id AS batch_id,
    allowed.organisation AS organisation,
    allowed.user AS user,
    allowed.session AS session,
    outbox.insert_id AS sent_insert_id,
    outbox.device_id AS sent_device_id,
    outbox.user_id AS sent_user_id,
    outbox.organisation_id AS sent_organisation_id,
    outbox.occurred_at AS sent_occurred_at,
    outbox.in_doubt_since AS in_doubt_since,
    multiIf(
        (user != 0 AND user IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'user'))
        OR (session != 0 AND session IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'session'))
        OR (organisation != 0
            AND organisation IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'organisation')),
        'erasure',
        (user != 0 AND user IN (SELECT subject FROM privacy.consent_withdrawals WHERE subject_kind = 'user'))
        OR (session != 0 AND session IN (SELECT subject FROM privacy.consent_withdrawals WHERE subject_kind = 'session')),
        'consent',
        toUnixTimestamp64Micro(in_doubt_since) > 0 AND in_doubt_since < now64(6) - INTERVAL 6 DAY,
        'in_doubt',
        '') AS withheld
FROM ops.export_allowed(destination = {destination:String}, names = {names:String}) AS allowed
LEFT JOIN
(
    SELECT event_id, insert_id, device_id, user_id, organisation_id, occurred_at, state, in_doubt_since
    FROM ops.export_outbox FINAL
    WHERE destination = {destination:String}
        AND event_id IN
        (
            SELECT event_id
            FROM ops.export_allowed(destination = {destination:String}, names = {names:String})
        )
) AS outbox ON allowed.event_id = outbox.event_id
WHERE outbox.insert_id = '' OR outbox.state IN ('sending', 'returned');
