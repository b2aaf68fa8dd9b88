-- Parses the lines of one slice (OTLP/JSON) and judges each log record against the contract.
-- Names in double braces are filled in from catalog/ and telemetry.yaml by ingest/statements.py.
INSERT INTO stage
WITH
    -- The catalogue as arrays. A pair is (event, key); attribute ids index the attribute_ arrays.
    {{pairs}} AS pairs,
    {{pair_ids}} AS pair_ids,
    {{pair_attributes}} AS pair_attributes,
    {{pair_required}} AS pair_required,
    {{attribute_keys}} AS attribute_keys,
    {{attribute_kinds}} AS attribute_kinds,
    {{attribute_payload_keys}} AS attribute_payload_keys,
    {{attribute_max_lengths}} AS attribute_max_lengths,
    {{attribute_int_minimums}} AS int_minimums,
    {{attribute_int_maximums}} AS int_maximums,
    {{attribute_double_minimums}} AS double_minimums,
    {{attribute_double_maximums}} AS double_maximums,
    {{event_names}} AS event_names,
    {{event_required_counts}} AS event_required_counts,
    {{event_required_keys}} AS event_required_keys,
    {{event_schema_versions}} AS event_schema_versions,

    lines AS
    (
        SELECT
            rowNumberInAllBlocks() AS line_number,
            line,
            multiIf(
                NOT isValidJSON(line), 'undecodable',
                JSONType(line) != 'Object', 'undecodable',
                JSONType(line, 'resourceLogs') != 'Array', 'not_logs',
                ''
            ) AS json_problem,
            JSONExtract(line, 'resourceLogs', '{{resource_logs_type}}') AS resource_logs,
            arrayFlatten(arrayMap(
                in_resource -> arrayMap(
                    in_scope -> arrayMap(
                        log_record -> tuple(
                            ifNull(
                                in_resource.resource.attributes.value.stringValue[
                                    indexOf(in_resource.resource.attributes.key, 'service.name')
                                ],
                                ''
                            ),
                            log_record
                        ),
                        in_scope.logRecords
                    ),
                    in_resource.scopeLogs
                ),
                resource_logs
            )) AS found_records,
            if(json_problem = '' AND empty(found_records), 'not_logs', json_problem) AS line_problem
        FROM input('line String')
        WHERE trimBoth(line, ' \t\r') != ''
    ),

    records AS
    (
        SELECT
            line_number,
            line_problem,
            problem_line,
            record_number,
            service_and_record.1 AS service,
            service_and_record.2 AS record
        FROM
        (
            SELECT
                line_number,
                line_problem,
                if(line_problem = '', '', line) AS problem_line,
                if(
                    line_problem = '',
                    found_records,
                    -- A placeholder: what cannot be decoded still counts as one record.
                    [tuple('', defaultValueOfTypeName('{{record_type}}'))]
                ) AS line_records
            FROM lines
        )
        ARRAY JOIN line_records AS service_and_record, arrayEnumerate(line_records) AS record_number
    ),

    -- Kinds of AnyValue: 1 string, 2 int, 3 double, 4 boolean, 5 array, 6 map, 7 bytes, 0 empty.
    decoded AS
    (
        SELECT
            line_number,
            record_number,
            line_problem,
            problem_line,
            service,
            record.timeUnixNano AS time_text,
            record.observedTimeUnixNano AS observed_text,
            arrayMap(
                (s, i, d, b, a, m, y) -> multiIf(
                    isNotNull(s), 1, isNotNull(i), 2, isNotNull(d), 3, isNotNull(b), 4,
                    isNotNull(a), 5, isNotNull(m), 6, isNotNull(y), 7, 0
                ),
                record.attributes.value.stringValue, record.attributes.value.intValue,
                record.attributes.value.doubleValue, record.attributes.value.boolValue,
                record.attributes.value.arrayValue, record.attributes.value.kvlistValue,
                record.attributes.value.bytesValue
            ) AS kinds,
            arrayMap(
                (s, i, d, b, a, m, y) -> ifNull(coalesce(s, i, d, b, a, m, y), ''),
                record.attributes.value.stringValue, record.attributes.value.intValue,
                record.attributes.value.doubleValue, record.attributes.value.boolValue,
                record.attributes.value.arrayValue, record.attributes.value.kvlistValue,
                record.attributes.value.bytesValue
            ) AS texts,
            arrayMap((key, kind) -> if(kind = 0, '', key), record.attributes.key, kinds) AS keys,
            arrayEnumerateUniq(keys) AS occurrences,
            multiIf(
                record.eventName != '', record.eventName,
                has(keys, 'otel.event.name'), texts[indexOf(keys, 'otel.event.name')],
                texts[indexOf(keys, 'event.name')]
            ) AS name,
            name IN (event_names) AS known,
            -- Of an attribute that stands twice, the first counts.
            arrayMap(
                (key, occurrence) -> if(
                    known AND occurrence = 1, transform(concat(name, '\n', key), pairs, pair_ids, 0), 0
                ),
                keys, occurrences
            ) AS record_pairs,
            arrayMap(pair -> pair_attributes[pair], record_pairs) AS ids,
            least(
                if(toUInt64OrZero(time_text) = 0, toUInt64OrZero(observed_text), toUInt64OrZero(time_text)),
                10413791999000000000
            ) AS claimed_ns,
            least(toUInt64OrZero(observed_text), 10413791999000000000) AS observed_ns,
            {{slice_time_ms}} AS slice_time_ms,
            intDiv(claimed_ns, 1000000) AS claimed_time_ms,
            intDiv(observed_ns, 1000000) AS observed_time_ms,
            -- A clock that runs ahead must not put rows into the future.
            multiIf(
                claimed_ns = 0, slice_time_ms,
                claimed_time_ms <= slice_time_ms + {{clock_tolerance_ms}}, claimed_time_ms,
                observed_time_ms BETWEEN 1 AND slice_time_ms + {{clock_tolerance_ms}}, observed_time_ms,
                slice_time_ms
            ) AS occurred_time_ms
        FROM records
    ),

    judged AS
    (
        SELECT
            *,
            {{org_key}} AS org_key,
            {{user_key}} AS user_key,
            {{session_key}} AS session_key,
            texts[indexOf(keys, org_key)] AS org_value,
            texts[indexOf(keys, user_key)] AS user_value,
            texts[indexOf(keys, session_key)] AS session_value,
            match(org_value, {{edge_id_pattern}}) AS org_is_edge,
            match(user_value, {{edge_id_pattern}}) AS user_is_edge,
            match(session_value, {{edge_id_pattern}}) AS session_is_edge,
            -- Every id counts, also one that another of the same column outranks.
            arrayFirst(
                key -> has(keys, key) AND NOT match(texts[indexOf(keys, key)], {{edge_id_pattern}}),
                {{identifier_keys}}
            ) AS raw_identifier_key,
            {{consent_key}} AS consent_key,
            texts[indexOf(keys, consent_key)] AS consent,
            arrayFirst(
                (id, kind, text) -> id != 0 AND NOT multiIf(
                    id IN {{unchecked_attributes}}, 1,
                    attribute_kinds[id] = 1, kind = 1
                        AND lengthUTF8(text) <= attribute_max_lengths[id]
                        AND ({{enum_check}})
                        AND ({{pattern_check}}),
                    attribute_kinds[id] = 2, kind = 2
                        AND isNotNull(toInt64OrNull(text))
                        AND toInt64OrZero(text) BETWEEN int_minimums[id] AND int_maximums[id],
                    attribute_kinds[id] = 3, (kind = 3 OR kind = 2 AND isNotNull(toInt64OrNull(text)))
                        AND isFinite(ifNull(toFloat64OrNull(text), nan))
                        AND toFloat64OrZero(text) BETWEEN double_minimums[id] AND double_maximums[id],
                    kind = 4 AND text IN ('true', 'false')
                ),
                ids, kinds, texts
            ) AS first_invalid,
            if(
                arraySum(pair -> pair_required[pair], record_pairs)
                    >= transform(name, event_names, event_required_counts, 0),
                '',
                arrayFirst(
                    key -> NOT has(keys, key),
                    splitByChar(',', transform(name, event_names, event_required_keys, ''))
                )
            ) AS first_missing,
            -- The order of judgement; the first that applies is the reason.
            multiIf(
                line_problem != '', line_problem,
                name = '', 'not_an_event',
                consent_key = '', {{absent_consent_reason}},
                consent != 'granted', 'consent_denied',
                ''
            ) AS early_reason,
            multiIf(
                early_reason != '', early_reason,
                NOT known, 'unknown_event',
                occurred_time_ms < slice_time_ms - {{retention_ms}}, 'expired',
                raw_identifier_key != '', 'raw_identifier',
                first_invalid != 0, 'invalid_attribute',
                first_missing != '', 'missing_attribute',
                ''
            ) AS reason,
            reason IN ('', {{rejecting_reasons}}) AS kept,
            -- What a dead letter may keep: all but attributes that are never stored.
            if(kept AND reason != '', arrayFilter(key -> key NOT IN ({{unstored_keys}}), keys), []) AS letter_keys
        FROM decoded
    )
SELECT
    line_number,
    record_number,
    reason,
    multiIf(
        reason = 'invalid_attribute', attribute_keys[first_invalid],
        reason = 'missing_attribute', first_missing,
        reason = 'raw_identifier', raw_identifier_key,
        ''
    ) AS field,
    -- A name outside the catalogue is free text and may say anything: it stays in the payload.
    if(kept AND known, name, '') AS event_name,
    if(kept, service, '') AS service_name,
    if(reason = '', texts[indexOf(keys, {{event_id_key}})], '') AS event_id_text,
    if(
        reason = '',
        if({{schema_version_key}} = '', transform(name, event_names, event_schema_versions, ''),
           texts[indexOf(keys, {{schema_version_key}})]),
        ''
    ) AS schema_version,
    if(kept AND org_is_edge, org_value, '') AS org_edge_id,
    if(kept AND user_is_edge, user_value, '') AS user_edge_id,
    if(kept AND session_is_edge, session_value, '') AS session_edge_id,
    if(reason = '', texts[indexOf(keys, {{route_key}})], '') AS route_pattern,
    if(kept, claimed_time_ms, 0) AS claimed_ms,
    if(kept, occurred_time_ms, 0) AS occurred_ms,
    if(
        reason = '',
        concat(
            '{',
            arrayStringConcat(
                arrayMap(
                    (id, kind, text) -> concat(
                        '"', attribute_payload_keys[id], '":',
                        multiIf(
                            kind = 1, toJSONString(text),
                            kind = 2, toString(toInt64OrZero(text)),
                            kind = 3, toString(toFloat64OrZero(text)),
                            text
                        )
                    ),
                    arrayFilter(id -> attribute_payload_keys[id] != '', ids),
                    arrayFilter((kind, id) -> attribute_payload_keys[id] != '', kinds, ids),
                    arrayFilter((text, id) -> attribute_payload_keys[id] != '', texts, ids)
                ),
                ','
            ),
            '}'
        ),
        ''
    ) AS payload_json,
    if(
        reason = '',
        arrayCount(
            (id, key, occurrence) ->
                id = 0 AND occurrence = 1 AND key NOT IN ('', 'otel.event.name', 'event.name'),
            ids, keys, occurrences
        ),
        0
    ) AS unknown_attributes,
    multiIf(
        line_problem != '', problem_line,
        reason != '' AND kept, concat(
            '{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":',
            toJSONString(service),
            '}}]},"scopeLogs":[{"logRecords":[{"timeUnixNano":', toJSONString(time_text),
            ',"observedTimeUnixNano":', toJSONString(observed_text),
            ',"eventName":', toJSONString(name),
            ',"attributes":[',
            arrayStringConcat(
                arrayMap(
                    (key, kind, text) -> concat(
                        '{"key":', toJSONString(key), ',"value":',
                        multiIf(
                            kind = 1, concat('{"stringValue":', toJSONString(text), '}'),
                            kind = 2, concat('{"intValue":', toJSONString(text), '}'),
                            kind = 3, concat('{"doubleValue":', toJSONString(text), '}'),
                            kind = 4, concat('{"boolValue":', if(text IN ('true', 'false'), text, toJSONString(text)), '}'),
                            kind = 5, concat('{"arrayValue":', text, '}'),
                            kind = 6, concat('{"kvlistValue":', text, '}'),
                            kind = 7, concat('{"bytesValue":', toJSONString(text), '}'),
                            '{}'
                        ),
                        '}'
                    ),
                    letter_keys,
                    arrayFilter((kind, key) -> has(letter_keys, key), kinds, keys),
                    arrayFilter((text, key) -> has(letter_keys, key), texts, keys)
                ),
                ','
            ),
            ']}]}]}]}'
        ),
        ''
    ) AS record_json
FROM judged
FORMAT LineAsString
