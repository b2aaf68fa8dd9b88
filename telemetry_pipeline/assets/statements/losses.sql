-- Ranges of sources that can never be ingested, found in the last days. A file that disappeared and
-- came back is read after all: what a claim reaches over is no loss any more.
SELECT
    countIf(detected_at > now() - toIntervalDay({alarm_days:UInt32})) AS losses,
    count() AS losses_ever,
    arrayStringConcat(arraySort(groupUniqArrayIf(
        concat(source, ': ', reason), detected_at > now() - toIntervalDay({alarm_days:UInt32})
    )), ', ') AS reasons
FROM ops.source_losses AS lost
LEFT JOIN
(
    SELECT source, partition, epoch, max(end_offset) AS claimed_end
    FROM ops.slice_intents
    WHERE batch_id IN (SELECT batch_id FROM ops.slice_results)
    GROUP BY source, partition, epoch
) AS claims USING (source, partition, epoch)
WHERE NOT (lost.reason = 'disappeared' AND claims.claimed_end >= lost.end_offset)
