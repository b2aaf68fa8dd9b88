-- What a replay would take of a choice, and why it leaves the rest: under which key, already held or
-- replayed, or too close to the end of its retention.
SELECT
    multiIf(
        state != 'waiting', toString(state),
        first_ingested_at < now64(3, 'UTC') - toIntervalMinute({keep_minutes:UInt32}), 'ending',
        NOT has_key, 'other_key',
        NOT opens, 'unreadable',
        'taken'
    ) AS fate,
    reason,
    if(fate = 'other_key', payload_key_id, '') AS key_id,
    count() AS letters
FROM {{matching}}
GROUP BY fate, reason, key_id
ORDER BY fate, reason, key_id
