    -- OTLP protobuf, export requests behind their lengths. Kinds as in OTLP/JSON; arrays, maps and
    -- bytes stay as they are on the wire.
    lines AS
    (
        SELECT
            rowNumberInAllBlocks() AS line_number,
            resourceLogs.scopeLogs.logRecords AS nested_records,
            arrayFlatten(nested_records) AS line_records,
            arrayFlatten(arrayMap(
                (attributes, in_scopes) -> arrayWithConstant(
                    arraySum(arrayMap(in_scope -> length(in_scope), in_scopes)),
                    ifNull(
                        arrayFirst(
                            attribute -> attribute.1 = 'service.name'
                                AND isNotNull(coalesce(
                                    attribute.2.1, attribute.2.2, attribute.2.3, attribute.2.4, attribute.2.5,
                                    attribute.2.6, attribute.2.7
                                )),
                            attributes
                        ).2.1,
                        ''
                    )
                ),
                resourceLogs.resource.attributes,
                nested_records
            )) AS line_services
        FROM input('{{request_type}}')
    ),
    records AS
    (
        SELECT
            line_number,
            record_number,
            service AS service_name,
            record.timeUnixNano AS time_ns,
            record.observedTimeUnixNano AS observed_ns,
            record.eventName AS event_name,
            record.attributes.key AS keys,
            arrayMap(
                (s, i, d, b, a, m, y) -> multiIf(
                    isNotNull(s), 'stringValue', isNotNull(i), 'intValue', isNotNull(d), 'doubleValue',
                    isNotNull(b), 'boolValue', isNotNull(a), 'arrayValue', isNotNull(m), 'kvlistValue',
                    isNotNull(y), 'bytesValue', ''
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
            ) AS texts
        FROM lines
        ARRAY JOIN
            line_records AS record,
            line_services AS service,
            arrayEnumerate(line_records) AS record_number
    )
