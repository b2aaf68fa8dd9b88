-- Moves one staged slice into raw.landing, whose views route every record to its target.
INSERT INTO raw.landing
(
    batch_id, attempt, source_name, source_partition, source_position, verdict, reason, field,
    unknown_attributes, org_id_hash, event_id, name, schema_version, session_id, anonymous_user_id,
    route_pattern, payload_json, occurred_at, reporting_day, ingested_at, source, pseudonym_key_id,
    claimed_occurred_at, precedence, payload_key_id, payload_nonce, payload_encrypted
)
SELECT
    {batch_id:UInt64},
    {attempt:UInt16},
    {source_name:String},
    {source_partition:String},
    stage.position,
    multiIf(
        stage.reason IN ({{dropped_reasons}}), 'dropped',
        stage.reason != '' OR repeats.is_conflict, 'rejected',
        repeats.position != 0, 'duplicate',
        'accepted'
    ) AS verdict,
    if(stage.reason = '' AND verdict = 'rejected', 'event_id_conflict', stage.reason) AS reason,
    letters.field,
    if(verdict = 'accepted', stage.unknown_attributes, 0),
    if(verdict = 'dropped', 0, stage.org_id_hash),
    stage.event_id,
    if(verdict = 'dropped', '', stage.event_name),
    stage.schema_version,
    if(verdict = 'dropped', 0, stage.session_id),
    if(verdict = 'dropped', 0, stage.anonymous_user_id),
    stage.route_pattern,
    stage.payload_json,
    fromUnixTimestamp64Milli(toInt64(stage.occurred_ms), 'UTC') AS occurred_at,
    toDate(occurred_at, {{timezone}}),
    fromUnixTimestamp64Milli({slice_time_ms:Int64}, 'UTC'),
    stage.service_name,
    {pseudonym_key_id:String},
    fromUnixTimestamp64Milli(toInt64(if(stage.claimed_ms = stage.occurred_ms, 0, stage.claimed_ms)), 'UTC'),
    -- The view keeps the row with the highest precedence: the one of the earliest slice.
    18446744073709551615 - toUInt64({slice_time_ms:Int64}),
    if(verdict = 'rejected', {dead_letter_key_id:String}, ''),
    letters.payload_nonce,
    letters.payload_encrypted
FROM stage
LEFT JOIN repeats ON stage.position = repeats.position
LEFT JOIN letters ON stage.position = letters.position
-- A worker that was paused past its deadline and wakes up must land nothing: by then another may
-- own the slice. A scalar subquery is evaluated before the first row is read.
WHERE (SELECT throwIf(toUnixTimestamp64Milli(now64(3)) > {deadline_ms:Int64}, 'slice deadline passed')) = 0
