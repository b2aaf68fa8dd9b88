    -- OTLP/JSON, an export request a line. An AnyValue is read as a map of kind to text: the first
    -- kind in it counts, and a value of another type than its kind says is still seen.
    lines AS
    (
        SELECT
            rowNumberInAllBlocks() AS line_number,
            JSONExtract(line, 'resourceLogs', '{{resource_logs_type}}') AS resource_logs,
            resource_logs.scopeLogs.logRecords AS nested_records,
            arrayFlatten(nested_records) AS line_records,
            -- The name of each record's service, beside the records: a lambda that made pairs of
            -- them would copy the whole resource for every record.
            arrayFlatten(arrayMap(
                (attributes, in_scopes) -> arrayWithConstant(
                    arraySum(arrayMap(in_scope -> length(in_scope), in_scopes)),
                    ifNull(
                        arrayFirst(
                            attribute -> attribute.1 = 'service.name' AND isNotNull(mapValues(attribute.2)[1]),
                            attributes
                        ).2['stringValue'],
                        ''
                    )
                ),
                resource_logs.resource.attributes,
                nested_records
            )) AS line_services
        FROM input('line String')
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
            arrayMap(value -> mapValues(value)[1], record.attributes.value) AS values,
            -- A null is no value, whatever its kind.
            arrayMap(
                (value, text) -> if(isNull(text), '', mapKeys(value)[1]), record.attributes.value, values
            ) AS kinds,
            arrayMap(text -> ifNull(text, ''), values) AS texts
        FROM lines
        -- A line without records leaves none here; the loader sees that its number is missing.
        ARRAY JOIN
            line_records AS record,
            line_services AS service,
            arrayEnumerate(line_records) AS record_number
    )
