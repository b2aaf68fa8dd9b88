-- Whether a slice of a replay may be landing now: claimed, without an end, and not past its time.
SELECT count() AS slices
FROM
(
    SELECT partition, epoch, start_offset, end_offset, batch_id, max(deadline) AS last_deadline
    FROM ops.slice_intents
    WHERE source = {source:String}
    GROUP BY partition, epoch, start_offset, end_offset, batch_id
)
WHERE batch_id NOT IN (SELECT batch_id FROM ops.slice_results WHERE source = {source:String})
    AND (partition, epoch, start_offset, end_offset) NOT IN
    (
        SELECT partition, epoch, start_offset, end_offset FROM ops.source_losses WHERE source = {source:String}
    )
    AND last_deadline + toIntervalSecond({grace_seconds:UInt32}) >= now64(3, 'UTC')
