-- Judges the parsed records of one slice. What all records of a shape have in common stands in
-- `shapes`; here only values are looked at: ids and checked values once for each distinct one of a
-- block (LowCardinality runs a function on the dictionary), the rest once a record.
-- Parameters: slice_time_ms, keys (named secret_key_*: servers mask those).
INSERT INTO stage
WITH
    valued AS
    (
        SELECT
            parsed.position AS position,
            parsed.service_name AS service_name,
            parsed.texts AS texts,
            shapes.*,
            toLowCardinality(texts[org_position]) AS org_text,
            toLowCardinality(texts[user_position]) AS user_text,
            toLowCardinality(texts[session_position]) AS session_text,
            texts[event_id_position] AS event_id_text,
            toLowCardinality(texts[route_position]) AS route,
            -- Checked values as `<class><attribute number>=<text>`; see ingest/shapes.py.
            arrayFirstIndex(
                (prefix, text) -> NOT match(toLowCardinality(concat(prefix, text)), {{listed_values}}),
                listed_prefixes,
                arrayFilter((text, check) -> check BETWEEN 1 AND 3, texts, checks)
            ) AS bad_listed,
            arrayFirstIndex(
                (prefix, text) -> NOT ({{other_value_is_allowed}}),
                other_prefixes,
                arrayMap(at -> texts[at], other_positions)
            ) AS bad_other,
            -- Ids that are neither of the three above: outranked by another of the same column.
            arrayFirst(at -> NOT ({{absent_id}} OR match(texts[at], {{edge_id_pattern}})), other_id_positions) AS raw_other_id,
            {{org_edge_id}} AS org_edge_id,
            {{user_edge_id}} AS user_edge_id,
            {{session_edge_id}} AS session_edge_id,
            org_position = 0 OR ({{absent_id}} AND org_edge_id = '') OR match(org_edge_id, {{edge_id_pattern}}) AS org_is_edge,
            user_position = 0 OR ({{absent_id}} AND user_edge_id = '') OR match(user_edge_id, {{edge_id_pattern}}) AS user_is_edge,
            session_position = 0 OR ({{absent_id}} AND session_edge_id = '') OR match(session_edge_id, {{edge_id_pattern}}) AS session_is_edge,
            if(org_edge_id = '' OR NOT org_is_edge, 0, reinterpretAsUInt64(substring(
                HMAC('SHA256', org_edge_id, {secret_key_organisation:String}), 1, 8))) AS org_pseudonym,
            if(user_edge_id = '' OR NOT user_is_edge, 0, reinterpretAsUInt64(substring(
                HMAC('SHA256', user_edge_id, {secret_key_user:String}), 1, 8))) AS user_pseudonym,
            if(session_edge_id = '' OR NOT session_is_edge, 0, reinterpretAsUInt64(substring(
                HMAC('SHA256', session_edge_id, {secret_key_session:String}), 1, 8))) AS session_pseudonym,

            -- Nanoseconds up to the year 2299, as far as the columns reach.
            intDiv(least(if(parsed.time_ns = 0, parsed.observed_ns, parsed.time_ns), 10413791999000000000), 1000000)
                AS claimed_ms,
            intDiv(least(parsed.observed_ns, 10413791999000000000), 1000000) AS observed_ms,
            {slice_time_ms:UInt64} AS slice_time_ms,
            -- A clock that runs ahead must not put rows into the future.
            multiIf(
                parsed.time_ns = 0 AND parsed.observed_ns = 0, slice_time_ms,
                claimed_ms <= slice_time_ms + {{clock_tolerance_ms}}, claimed_ms,
                observed_ms BETWEEN 1 AND slice_time_ms + {{clock_tolerance_ms}}, observed_ms,
                slice_time_ms
            ) AS occurred_ms,

            -- The pieces of a plain shape carry every quote and comma; the rest is put together
            -- value by value.
            if(
                is_plain,
                concat(
                    arrayStringConcat(arrayMap(
                        (piece, text) -> concat(piece, text),
                        payload_pieces,
                        arrayFilter((text, check) -> check IN (2, 5), texts, checks)
                    )),
                    payload_tail
                ),
                concat('{', arrayStringConcat(arrayMap(
                    (piece, kind, text) -> concat(piece, multiIf(
                        kind = 1, toJSONString(text), kind = 3, toString(toFloat64OrZero(text)), text
                    )),
                    mixed_pieces,
                    mixed_kinds,
                    arrayFilter((text, check) -> check IN (3, 6), texts, checks)
                ), ','), '}')
            ) AS payload
        FROM parsed
        INNER JOIN shapes ON parsed.shape = shapes.shape
    ),

    judged AS
    (
        SELECT
            *,
            -- The order of judgement; the first that applies is the reason.
            multiIf(
                shape_reason = 'not_an_event', 'not_an_event',
                consent_position = 0, {{absent_consent_reason}},
                texts[consent_position] != 'granted', 'consent_denied',
                ''
            ) AS early_reason,
            multiIf(
                NOT org_is_edge, org_key,
                NOT user_is_edge, user_key,
                NOT session_is_edge, session_key,
                raw_other_id != 0, other_id_keys[indexOf(other_id_positions, raw_other_id)],
                ''
            ) AS raw_key,
            multiIf(
                early_reason != '', early_reason,
                user_pseudonym IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'user')
                    OR org_pseudonym IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'organisation')
                    OR session_pseudonym IN (SELECT subject FROM privacy.erasure_tombstones WHERE subject_kind = 'session'),
                    'erased',
                user_pseudonym IN (SELECT subject FROM privacy.consent_withdrawals WHERE subject_kind = 'user')
                    OR session_pseudonym IN (SELECT subject FROM privacy.consent_withdrawals WHERE subject_kind = 'session'),
                    'consent_withdrawn',
                shape_reason = 'unknown_event', 'unknown_event',
                occurred_ms + {{retention_ms}} < slice_time_ms, 'expired',
                raw_key != '', 'raw_identifier',
                shape_reason = 'invalid_attribute' OR bad_listed != 0 OR bad_other != 0
                    OR lengthUTF8(event_id_text) > {{event_id_max_length}}, 'invalid_attribute',
                shape_reason = 'missing_attribute', 'missing_attribute',
                ''
            ) AS verdict,
            toUUIDOrZero(event_id_text) AS event_uuid
        FROM valued
    )
SELECT
    position,
    verdict,
    event_name,
    service_name,
    -- No UUID: the id's text (or, without one, the whole event) under a key that is never rotated.
    -- Unkeyed, the hash would be an oracle for what it was made of. The arrays have one item or
    -- none, so that nothing is put together for the many events that have an id.
    if(
        event_uuid != toUUID('00000000-0000-0000-0000-000000000000'),
        event_uuid,
        reinterpretAsUUID(substring(HMAC('SHA256', toLowCardinality(arrayStringConcat(arrayMap(
            _ -> if(
                event_id_text != '',
                concat('id:', event_id_text),
                concat(
                    'event:', service_name, '\n', event_name, '\n', toString(claimed_ms), '\n',
                    org_edge_id, '\n', user_edge_id, '\n', session_edge_id, '\n', route, '\n', payload
                )
            ),
            if(verdict = '' AND event_uuid = toUUID('00000000-0000-0000-0000-000000000000'), [1], [])
        ))), {secret_key_event:String}), 1, 16))
    ) AS event_id,
    if(schema_version_position = 0, default_schema_version, toLowCardinality(texts[schema_version_position]))
        AS schema_version,
    org_pseudonym,
    user_pseudonym,
    session_pseudonym,
    route,
    claimed_ms,
    occurred_ms,
    payload,
    unknown_attributes,
    multiIf(
        verdict != 'invalid_attribute', 0,
        bad_listed != 0, bad_listed,
        bad_other != 0, length(listed_prefixes) + bad_other,
        0
    ),
    if(verdict = 'raw_identifier', raw_key, '')
FROM judged
