-- Parses the records of one slice; data in the slice's encoding follows in the same body.
-- Names in double braces are filled in by ingest/statements.py.
INSERT INTO parsed
WITH
{{records}},
    named AS
    (
        SELECT
            *,
            -- The name stands in the record, or in one of two attributes of older emitters.
            if(event_name = '', keys, []) AS name_keys,
            multiIf(
                event_name != '', event_name,
                has(name_keys, 'otel.event.name'), texts[indexOf(name_keys, 'otel.event.name')],
                texts[indexOf(name_keys, 'event.name')]
            ) AS name
        FROM records
    )
SELECT
    -- Line and number in the line, in one figure that sorts like the source.
    bitOr(bitShiftLeft({{line_number}}, 24), toUInt64(record_number) + {{first_record}}) AS position,
    service_name,
    time_ns,
    observed_ns,
    texts,
    -- The parts stand apart by a text that no emitter can guess. Hashed once for each distinct
    -- shape of a block, because the text is LowCardinality by then.
    sipHash64Keyed(({{shape_key}}), shape_text) AS shape,
    toLowCardinality(concat(
        name, '{{section}}', toString(length(keys)), '{{section}}',
        arrayStringConcat(keys, '{{part}}'), '{{section}}', arrayStringConcat(kinds, '{{part}}')
    )) AS shape_text
FROM named
{{settings}}FORMAT {{format}}
