-- Parses the lines of one slice (OTLP/JSON) and judges each log record against the contract.
-- Names in double braces are filled in from catalog/ and telemetry.yaml by ingest/statements.py.
INSERT INTO stage
WITH
    -- The catalogue as arrays. Attribute ids count from 1 and index the attribute_ arrays; event e's
    -- attribute a stands at e * {{attribute_count}} + a of usage: 0 not its own, 1 its own, 2 required.
    {{usage}} AS usage,
    {{attribute_ids}} AS attribute_ids,
    {{attribute_keys}} AS attribute_keys,
    {{attribute_checks}} AS attribute_checks,
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
            JSONExtract(line, 'resourceLogs', '{{resource_logs_type}}') AS resource_logs,
            resource_logs.scopeLogs.logRecords AS nested_records,
            arrayFlatten(nested_records) AS found_records,
            -- The name of each record's service, beside the records: a lambda that made pairs of
            -- them would copy the whole resource for every record.
            arrayFlatten(arrayMap(
                (keys, texts, in_scopes) -> arrayWithConstant(
                    arraySum(arrayMap(in_scope -> length(in_scope), in_scopes)),
                    ifNull(texts[indexOf(keys, 'service.name')], '')
                ),
                resource_logs.resource.attributes.key,
                resource_logs.resource.attributes.value.stringValue,
                nested_records
            )) AS found_services,
            -- Only a line without records is asked why: each question parses it again.
            if(empty(found_records), line, '') AS suspect,
            multiIf(
                notEmpty(found_records), '',
                NOT isValidJSON(suspect), 'undecodable',
                JSONType(suspect) != 'Object', 'undecodable',
                'not_logs'
            ) AS line_problem
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
            service,
            record
        FROM
        (
            SELECT
                line_number,
                line_problem,
                if(line_problem = '', '', line) AS problem_line,
                -- A placeholder: what cannot be decoded still counts as one record.
                if(line_problem = '', found_services, ['']) AS line_services,
                if(
                    line_problem = '', found_records, [defaultValueOfTypeName('{{record_type}}')]
                ) AS line_records
            FROM lines
        )
        ARRAY JOIN
            line_records AS record,
            line_services AS service,
            arrayEnumerate(line_records) AS record_number
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
            if(record.eventName = '', keys, []) AS name_keys,
            multiIf(
                record.eventName != '', record.eventName,
                has(name_keys, 'otel.event.name'), texts[indexOf(name_keys, 'otel.event.name')],
                texts[indexOf(name_keys, 'event.name')]
            ) AS name,
            name IN (event_names) AS known,
            indexOf(event_names, name) AS event_number,
            -- Of an attribute that stands twice, the first counts.
            arrayMap(
                (key, occurrence) -> if(occurrence = 1, transform(key, attribute_keys, attribute_ids, 0), 0),
                keys, occurrences
            ) AS key_ids,
            arrayMap(
                id -> if(id = 0, 0, usage[event_number * {{attribute_count}} + id]), key_ids
            ) AS usages,
            arrayMap((id, used) -> if(used = 0, 0, id), key_ids, usages) AS ids,
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
            {{org_position}} AS org_position,
            {{user_position}} AS user_position,
            {{session_position}} AS session_position,
            texts[org_position] AS org_value,
            texts[user_position] AS user_value,
            texts[session_position] AS session_value,
            -- Every id counts, also one that another of the same column outranks.
            arrayFirst(
                (key, text) -> NOT match(text, {{edge_id_pattern}}),
                arrayFilter((key, id) -> id IN ({{identifier_ids}}), keys, key_ids),
                arrayFilter((text, id) -> id IN ({{identifier_ids}}), texts, key_ids)
            ) AS raw_identifier_key,
            -- Where one id is raw, each is looked at by itself: a dead letter keeps the others.
            org_position != 0 AND (raw_identifier_key = ''
                OR match(if(raw_identifier_key = '', '', org_value), {{edge_id_pattern}})) AS org_is_edge,
            user_position != 0 AND (raw_identifier_key = ''
                OR match(if(raw_identifier_key = '', '', user_value), {{edge_id_pattern}})) AS user_is_edge,
            session_position != 0 AND (raw_identifier_key = ''
                OR match(if(raw_identifier_key = '', '', session_value), {{edge_id_pattern}})) AS session_is_edge,
            {{consent_position}} AS consent_position,
            texts[consent_position] AS consent,
            -- Branches are not skipped while this runs, so each check gets the values that are its
            -- own: strings once for each distinct value of a block, numbers apart.
            arrayMap(id -> attribute_checks[id], ids) AS checks,
            arrayFirst(
                (id, kind, wanted, text) -> multiIf(
                    wanted = 1, kind != 1 OR lengthUTF8(text) > attribute_max_lengths[id] OR NOT match(
                        toLowCardinality(if(wanted = 1, concat(toString(id), '=', text), '')),
                        {{string_values}}
                    ),
                    wanted = 5, kind != 1 OR lengthUTF8(text) > attribute_max_lengths[id],
                    wanted = 4, kind != 4 OR text NOT IN ('true', 'false'),
                    0
                ),
                ids, kinds, checks, texts
            ) AS invalid_text,
            arrayFirst(
                (id, kind, wanted, text) -> NOT if(
                    wanted = 2,
                    kind = 2
                        AND isNotNull(toInt64OrNull(text))
                        AND toInt64OrZero(text) BETWEEN int_minimums[id] AND int_maximums[id],
                    (kind = 3 OR kind = 2 AND isNotNull(toInt64OrNull(text)))
                        AND isFinite(ifNull(toFloat64OrNull(text), nan))
                        AND toFloat64OrZero(text) BETWEEN double_minimums[id] AND double_maximums[id]
                ),
                arrayFilter((id, wanted) -> wanted IN (2, 3), ids, checks),
                arrayFilter((kind, wanted) -> wanted IN (2, 3), kinds, checks),
                arrayFilter(wanted -> wanted IN (2, 3), checks),
                arrayFilter((text, wanted) -> wanted IN (2, 3), texts, checks)
            ) AS invalid_number,
            if(invalid_text != 0, invalid_text, invalid_number) AS first_invalid,
            if(
                arrayCount(used -> used = 2, usages) >= event_required_counts[event_number],
                '',
                arrayFirst(
                    key -> NOT has(keys, key),
                    splitByChar(',', event_required_keys[event_number])
                )
            ) AS first_missing,
            -- The order of judgement; the first that applies is the reason.
            multiIf(
                line_problem != '', line_problem,
                name = '', 'not_an_event',
                consent_position = 0, {{absent_consent_reason}},
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
    if(reason = '', texts[{{event_id_position}}], '') AS event_id_text,
    if(
        reason = '',
        if({{schema_version_position}} = 0, event_schema_versions[event_number],
           texts[{{schema_version_position}}]),
        ''
    ) AS schema_version,
    if(kept AND org_is_edge, org_value, '') AS org_edge_id,
    if(kept AND user_is_edge, user_value, '') AS user_edge_id,
    if(kept AND session_is_edge, session_value, '') AS session_edge_id,
    if(reason = '', texts[{{route_position}}], '') AS route_pattern,
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
        -- A loop of one or none: only what is rejected is written out.
        reason != '' AND kept, arrayStringConcat(arrayMap(
            _ -> concat(
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
            if(reason != '' AND kept, [1], [])
        )),
        ''
    ) AS record_json
FROM judged
FORMAT LineAsString
