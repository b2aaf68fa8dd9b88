-- The dead letters of one slice: each rejected record as a line of OTLP/JSON, encrypted.
INSERT INTO letters
WITH
    rejected AS
    (
        SELECT
            stage.position AS position,
            if(stage.reason = '', 'event_id_conflict', toString(stage.reason)) AS reason,
            multiIf(
                stage.reason = 'missing_attribute', shapes.first_missing,
                stage.reason = 'raw_identifier', stage.raw_id_key,
                stage.reason != 'invalid_attribute', '',
                shapes.wrong_kind_key != '', shapes.wrong_kind_key,
                stage.bad_value = 0, {{event_id_key}},
                shapes.checked_keys[stage.bad_value]
            ) AS field,
            parsed.service_name AS service,
            parsed.time_ns AS time_ns,
            parsed.observed_ns AS observed_ns,
            shapes.name AS name,
            -- What a dead letter may keep: all but attributes that are never stored.
            arrayMap(
                (key, kind, text) -> kind != '' AND key NOT IN ({{unstored_keys}}) AND {{letter_keeps}},
                shapes.letter_keys, shapes.kinds, parsed.texts
            ) AS kept,
            arrayFilter((key, keep) -> keep, shapes.letter_keys, kept) AS keys,
            arrayFilter((kind, keep) -> keep, shapes.kinds, kept) AS kinds,
            -- Ids of a source that hashes on read are edge ids here, as if the edge had done it.
            arrayMap(
                (key, text) -> {{letter_text}},
                keys, arrayFilter((text, keep) -> keep, parsed.texts, kept)
            ) AS texts
        FROM stage
        INNER JOIN parsed ON stage.position = parsed.position
        INNER JOIN shapes ON parsed.shape = shapes.shape
        WHERE stage.reason IN ({{rejected_reasons}})
            OR stage.position IN (SELECT position FROM repeats WHERE is_conflict)
    ),
    written AS
    (
        SELECT
            position,
            reason,
            field,
            concat(
                '{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":',
                toJSONString(service),
                '}}]},"scopeLogs":[{"logRecords":[{"timeUnixNano":"', toString(time_ns),
                '","observedTimeUnixNano":"', toString(observed_ns),
                '","eventName":', toJSONString(name),
                ',"attributes":[',
                arrayStringConcat(
                    arrayMap(
                        (key, kind, text) -> concat(
                            '{"key":', toJSONString(key), ',"value":{"', kind, '":',
                            multiIf(
                                kind = 'boolValue' AND text IN ('true', 'false'), text,
                                kind IN ('arrayValue', 'kvlistValue') AND isValidJSON(text), text,
                                -- Protobuf's own bytes have no other place in JSON.
                                kind IN ('arrayValue', 'kvlistValue', 'bytesValue') AND {is_binary:UInt8},
                                    toJSONString(base64Encode(text)),
                                toJSONString(text)
                            ),
                            '}}'
                        ),
                        keys, kinds, texts
                    ),
                    ','
                ),
                ']}]}]}]}'
            ) AS json
        FROM rejected
    )
SELECT
    position,
    reason,
    field,
    -- Drawn from the payload and its place under its own key: never the same for two dead letters
    -- (one nonce for two messages would give away what authenticates them).
    substring(HMAC('SHA256', concat(toString({batch_id:UInt64}), ':', toString(position), ':', json),
                   {secret_key_dead_letter_nonce:String}), 1, 12) AS nonce,
    encrypt('aes-256-gcm', json, unhex({secret_key_dead_letter:String}), nonce, toString({batch_id:UInt64}))
FROM
(
    SELECT position, reason, field, json FROM written
    UNION ALL
    SELECT position, reason, '' AS field, line AS json FROM problems
)
