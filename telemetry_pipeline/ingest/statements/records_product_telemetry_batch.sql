    -- Entries of a Redis stream, one a line: {"organisation": ..., "batch": ProductTelemetryBatch}.
    -- A payload's keys are marked as such: the contract says which attribute of the event they are.
    lines AS
    (
        SELECT
            rowNumberInAllBlocks() AS line_number,
            JSONExtractString(line, 'organisation') AS organisation,
            JSONExtract(line, 'batch', '{{batch_type}}') AS batch,
            -- An absent id is no id; an empty one is a wrong one.
            JSONExtract(line, 'batch', 'Tuple(consent Tuple(analytics Nullable(String)))').1.1 AS analytics
        FROM input('line String')
    ),
    events AS
    (
        SELECT
            line_number, organisation, analytics, event_number, event,
            batch.schemaVersion AS schema_version,
            batch.source AS source,
            batch.sentAt AS sent_at,
            batch.sessionId AS session_id,
            batch.anonymousUserId AS user_id,
            JSONExtractKeysAndValuesRaw(event.payload) AS payload
        FROM lines
        ARRAY JOIN batch.events AS event, arrayEnumerate(batch.events) AS event_number
    ),
    records AS
    (
        SELECT
            line_number,
            event_number AS record_number,
            source AS service_name,
            {{time_ns_of_occurred_at}} AS time_ns,
            {{time_ns_of_sent_at}} AS observed_ns,
            event.name AS event_name,
            arrayConcat(
                {{column_keys}},
                arrayMap(pair -> concat('{{payload_mark}}', pair.1), payload)
            ) AS keys,
            arrayConcat(
                [
                    if(isNull(event.eventId), '', 'stringValue'),
                    if(isNull(schema_version), '', 'stringValue'),
                    if(isNull(analytics), '', 'stringValue'),
                    if(organisation = '', '', 'stringValue'),
                    if(isNull(user_id), '', 'stringValue'),
                    if(isNull(session_id), '', 'stringValue'),
                    if(isNull(event.routePattern), '', 'stringValue')
                ],
                arrayMap(
                    pair -> multiIf(
                        startsWith(pair.2, '"'), 'stringValue',
                        pair.2 IN ('true', 'false'), 'boolValue',
                        match(pair.2, '^-?[0-9]+$'), 'intValue',
                        startsWith(pair.2, '['), 'arrayValue',
                        startsWith(pair.2, '{'), 'kvlistValue',
                        pair.2 = 'null', '',
                        'doubleValue'
                    ),
                    payload
                )
            ) AS kinds,
            arrayConcat(
                [
                    ifNull(event.eventId, ''),
                    ifNull(schema_version, ''),
                    -- The client's own types have a boolean here, OTLP's attribute a word.
                    transform(ifNull(analytics, ''), ['true', 'false'], ['granted', 'denied'], ifNull(analytics, '')),
                    organisation,
                    ifNull(user_id, ''),
                    ifNull(session_id, ''),
                    ifNull(event.routePattern, '')
                ],
                arrayMap(
                    pair -> if(startsWith(pair.2, '"'), JSONExtractString(pair.2), pair.2), payload
                )
            ) AS texts
        FROM events
    )
