-- The payloads of items [start, end) in order, one line each; the same bytes at every reading.
SELECT
    multiIf(
        -- A blank line would count as nothing: this counts as the one undecodable record it was.
        trimBoth(payload, ' \t\r\n') = '', '""',
        NOT lacks_time, replaceAll(payload, '\n', ' '),
        -- Without any time of its own it keeps the time at which it first arrived. The first match is the
        -- record's own field: inside a string its quotes would be escaped.
        match(payload, observed_field), replaceRegexpOne(payload, observed_field, observed_time),
        replaceOne(payload, '"logRecords":[{', concat('"logRecords":[{', observed_time, ','))
    ) AS line
FROM
(
    SELECT
        items.number AS number,
        assumeNotNull(tryDecrypt(
            'aes-256-gcm', letters.payload_encrypted, unhex({secret_key_dead_letter:String}),
            letters.payload_nonce, toString(letters.batch_id)
        )) AS payload,
        '"observedTimeUnixNano":"[^"]*"' AS observed_field,
        concat(
            '"observedTimeUnixNano":"',
            toString(toUnixTimestamp64Milli(items.first_ingested_at)), '000000"'
        ) AS observed_time,
        JSONExtractRaw(payload, 'resourceLogs', 1, 'scopeLogs', 1, 'logRecords', 1) AS record,
        letters.reason NOT IN ('undecodable', 'not_logs')
            AND record != ''
            AND toUInt64OrZero(JSONExtractString(record, 'timeUnixNano')) = 0
            AND toUInt64OrZero(JSONExtractString(record, 'observedTimeUnixNano')) = 0 AS lacks_time
    FROM ops.dead_letter_replay_items AS items
    INNER JOIN raw.dead_letters AS letters
        ON items.batch_id = letters.batch_id AND items.attempt = letters.attempt
        AND items.source_position = letters.source_position
    WHERE items.replay_id = {replay_id:UUID}
        AND items.number >= {start:UInt64} AND items.number < {end:UInt64}
        AND letters.payload_key_id = {key_id:String}
        AND isNotNull(tryDecrypt(
            'aes-256-gcm', letters.payload_encrypted, unhex({secret_key_dead_letter:String}),
            letters.payload_nonce, toString(letters.batch_id)
        ))
)
ORDER BY number
FORMAT TSVRaw
