-- Records of the slice whose event id is not new: it stands in the warehouse, in the days the slice
-- touches and their neighbours, or earlier in the slice. With another name or time it is a conflict.
INSERT INTO repeats
WITH first_seen AS
(
    SELECT
        event_id,
        min(seen_at) AS first_at,
        -- Everything stored under the id (it may have been taken up again long after), and the first
        -- of the slice.
        arrayConcat(
            groupUniqArrayIf(tuple(name, claimed_ms), seen_at = -1),
            [argMin(tuple(name, claimed_ms), seen_at)]
        ) AS identities
    FROM
    (
        SELECT
            event_id,
            toString(name) AS name,
            toUInt64(toUnixTimestamp64Milli(
                if(toUnixTimestamp64Milli(claimed_occurred_at) = 0, occurred_at, claimed_occurred_at)
            )) AS claimed_ms,
            toInt64(-1) AS seen_at
        FROM raw.product_telemetry_events_storage
        WHERE toDate(occurred_at) IN
        (
            SELECT DISTINCT arrayJoin([day - 1, day, day + 1])
            FROM (SELECT DISTINCT toDate(fromUnixTimestamp64Milli(toInt64(occurred_ms), 'UTC')) AS day
                  FROM stage WHERE reason = '')
        )
            AND event_id IN (SELECT event_id FROM stage WHERE reason = '')
            AND batch_id != {batch_id:UInt64}
        UNION ALL
        SELECT event_id, toString(event_name) AS name, claimed_ms, toInt64(position) AS seen_at
        FROM stage
        WHERE reason = '' AND event_id IN
        (
            SELECT event_id FROM stage WHERE reason = '' GROUP BY event_id HAVING count() > 1
        )
    )
    GROUP BY event_id
)
SELECT
    stage.position,
    -- An event that came without any time has none to compare.
    NOT if(
        stage.claimed_ms = 0,
        has(identities.1, toString(stage.event_name)),
        has(identities, tuple(toString(stage.event_name), stage.claimed_ms))
    ) AS is_conflict
FROM stage
INNER JOIN first_seen ON stage.event_id = first_seen.event_id
WHERE stage.reason = '' AND first_seen.first_at < toInt64(stage.position)
