-- Dead letters that a choice of the user takes in; what is empty or 0 leaves none out. A name that was
-- not in the catalogue is looked for inside the payload, which takes the key.
(
    SELECT
        *,
        payload_key_id = {key_id:String} AS has_key,
        tryDecrypt(
            'aes-256-gcm', payload_encrypted, unhex({secret_key_dead_letter:String}), payload_nonce,
            toString(batch_id)
        ) AS payload,
        has_key AND isNotNull(payload) AS opens
    FROM ops.dead_letter_states
    WHERE (empty({reasons:Array(String)}) OR reason IN {reasons:Array(String)})
        AND (empty({sources:Array(String)}) OR source IN {sources:Array(String)})
        AND (empty({batches:Array(UInt64)}) OR batch_id IN {batches:Array(UInt64)})
        AND ingested_at >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC')
        AND ({until_ms:Int64} = 0 OR ingested_at < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC'))
        AND (
            empty({events:Array(String)})
            OR event_name IN {events:Array(String)}
            OR reason = 'unknown_event' AND JSONExtractString(
                ifNull(payload, ''), 'resourceLogs', 1, 'scopeLogs', 1, 'logRecords', 1, 'eventName'
            ) IN {events:Array(String)}
        )
)
