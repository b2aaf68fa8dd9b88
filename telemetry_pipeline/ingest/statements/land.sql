-- Moves one staged slice into raw.landing, whose views route every record to its target.
-- Parameters: the slice's claim and the keys. Keys are named secret_key_*: servers mask those.
INSERT INTO raw.landing
(
    batch_id, attempt, source_name, source_partition, source_position, verdict, reason, field,
    unknown_attributes, org_id_hash, event_id, name, schema_version, session_id, anonymous_user_id,
    route_pattern, payload_json, occurred_at, reporting_day, ingested_at, source, pseudonym_key_id,
    claimed_occurred_at, precedence, payload_key_id, payload_nonce, payload_encrypted
)
WITH
    identified AS
    (
        SELECT
            *,
            -- Line number and number in the line, in one figure that sorts like the source.
            bitOr(bitShiftLeft(line_number, 24), toUInt64(record_number)) AS position,
            multiIf(
                reason != '', toUUID('00000000-0000-0000-0000-000000000000'),
                toUUIDOrZero(event_id_text) != toUUID('00000000-0000-0000-0000-000000000000'),
                    toUUIDOrZero(event_id_text),
                -- No UUID: the id text (or, without one, the whole event) under a key that is
                -- never rotated. Unkeyed, the hash would be an oracle for what it was made of.
                reinterpretAsUUID(substring(HMAC(
                    'SHA256',
                    if(
                        event_id_text != '',
                        concat('id:', event_id_text),
                        concat(
                            'event:', service_name, '\n', event_name, '\n', toString(claimed_ms), '\n',
                            org_edge_id, '\n', user_edge_id, '\n', session_edge_id, '\n',
                            route_pattern, '\n', payload_json
                        )
                    ),
                    {secret_key_event:String}
                ), 1, 16))
            ) AS event_id
        FROM stage
    ),

    -- Where else these event ids stand: in the warehouse (position -1) or twice in this slice.
    first_seen AS
    (
        SELECT
            event_id,
            min(seen_position) AS first_position,
            argMin(tuple(name, claimed_ms), seen_position) AS first_identity
        FROM
        (
            SELECT
                event_id,
                toString(name) AS name,
                toUInt64(toUnixTimestamp64Milli(
                    if(toUnixTimestamp64Milli(claimed_occurred_at) = 0, occurred_at, claimed_occurred_at)
                )) AS claimed_ms,
                toInt64(-1) AS seen_position
            FROM raw.product_telemetry_events_storage
            WHERE toDate(occurred_at) IN
            (
                SELECT DISTINCT arrayJoin([day - 1, day, day + 1])
                FROM (SELECT DISTINCT toDate(fromUnixTimestamp64Milli(toInt64(occurred_ms), 'UTC')) AS day
                      FROM identified WHERE reason = '')
            )
                AND event_id IN (SELECT event_id FROM identified WHERE reason = '')
                AND batch_id != {batch_id:UInt64}
            UNION ALL
            SELECT event_id, toString(event_name) AS name, claimed_ms, toInt64(position) AS seen_position
            FROM identified
            WHERE reason = '' AND event_id IN
            (
                SELECT event_id FROM identified WHERE reason = '' GROUP BY event_id HAVING count() > 1
            )
        )
        GROUP BY event_id
    ),

    -- Once per distinct id of the slice: edge ids are LowCardinality, the hash runs on the dictionary.
    hashed AS
    (
        SELECT
            *,
            if(org_edge_id = '', 0, reinterpretAsUInt64(substring(
                HMAC('SHA256', org_edge_id, {secret_key_organisation:String}), 1, 8))) AS org_pseudonym,
            if(user_edge_id = '', 0, reinterpretAsUInt64(substring(
                HMAC('SHA256', user_edge_id, {secret_key_user:String}), 1, 8))) AS user_pseudonym,
            if(session_edge_id = '', 0, reinterpretAsUInt64(substring(
                HMAC('SHA256', session_edge_id, {secret_key_session:String}), 1, 8))) AS session_pseudonym
        FROM identified
    ),

    judged AS
    (
        SELECT
            hashed.*,
            first_seen.event_id != toUUID('00000000-0000-0000-0000-000000000000')
                AND first_seen.first_position < toInt64(hashed.position) AS is_repeated,
            multiIf(
                hashed.reason IN ({{early_reasons}}), hashed.reason,
                user_pseudonym IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'user')
                    OR org_pseudonym IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'organisation')
                    OR session_pseudonym IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'session'),
                    'erased',
                user_pseudonym IN (SELECT subject FROM privacy.consent_withdrawals WHERE subject_kind = 'user')
                    OR session_pseudonym IN (SELECT subject FROM privacy.consent_withdrawals WHERE subject_kind = 'session'),
                    'consent_withdrawn',
                hashed.reason != '', hashed.reason,
                is_repeated AND (
                    first_seen.first_identity.1 != toString(hashed.event_name)
                    -- An event that came without any time has none to compare.
                    OR (hashed.claimed_ms != 0 AND hashed.claimed_ms != first_seen.first_identity.2)
                ), 'event_id_conflict',
                ''
            ) AS final_reason,
            multiIf(
                final_reason IN ({{dropped_reasons}}), 'dropped',
                final_reason != '', 'rejected',
                is_repeated, 'duplicate',
                'accepted'
            ) AS verdict,
            if(
                verdict != 'rejected', '',
                if(record_json != '', record_json,
                   toJSONString(map(
                       'eventName', toString(event_name), 'event.id', event_id_text,
                       'timeUnixMilli', toString(claimed_ms), 'service.name', toString(service_name),
                       'schema.version', toString(schema_version), 'organisation', toString(org_edge_id),
                       'user', toString(user_edge_id), 'session', toString(session_edge_id),
                       'route', toString(route_pattern), 'payload', payload_json
                   )))
            ) AS rejected_json,
            if(
                verdict = 'rejected',
                -- Drawn from the payload and its place under its own key: never the same for two dead
                -- letters (one nonce for two messages would give away what authenticates them).
                substring(HMAC('SHA256', concat(toString({batch_id:UInt64}), ':', toString(position), ':', rejected_json),
                               {secret_key_dead_letter_nonce:String}), 1, 12),
                ''
            ) AS nonce
        FROM hashed
        LEFT JOIN first_seen ON hashed.event_id = first_seen.event_id
    )
SELECT
    {batch_id:UInt64},
    {attempt:UInt16},
    {source_name:String},
    {source_partition:String},
    position,
    verdict,
    final_reason,
    if(verdict = 'rejected', field, ''),
    if(verdict = 'accepted', unknown_attributes, 0),
    if(verdict = 'dropped', 0, org_pseudonym),
    if(verdict = 'accepted', event_id, toUUID('00000000-0000-0000-0000-000000000000')),
    if(verdict = 'dropped', '', toString(event_name)),
    schema_version,
    if(verdict = 'dropped', 0, session_pseudonym),
    if(verdict = 'dropped', 0, user_pseudonym),
    route_pattern,
    payload_json,
    fromUnixTimestamp64Milli(toInt64(occurred_ms), 'UTC') AS occurred_at,
    toDate(occurred_at, {{timezone}}),
    fromUnixTimestamp64Milli({slice_time_ms:Int64}, 'UTC'),
    service_name,
    {pseudonym_key_id:String},
    fromUnixTimestamp64Milli(toInt64(if(claimed_ms = occurred_ms, 0, claimed_ms)), 'UTC'),
    -- The view keeps the row with the highest precedence: the one of the earliest slice.
    18446744073709551615 - toUInt64({slice_time_ms:Int64}),
    if(verdict = 'rejected', {dead_letter_key_id:String}, ''),
    nonce,
    if(
        verdict = 'rejected',
        encrypt('aes-256-gcm', rejected_json, unhex({secret_key_dead_letter:String}), nonce,
                toString({batch_id:UInt64})),
        ''
    )
FROM judged
-- A worker that was paused past its deadline and wakes up must land nothing: by then another may
-- own the slice. A scalar subquery is evaluated before the first row is read.
WHERE (SELECT throwIf(toUnixTimestamp64Milli(now64(3)) > {deadline_ms:Int64}, 'slice deadline passed')) = 0
