-- How far the claims of a source reach in every epoch of every partition.
SELECT partition, epoch, max(end_offset) AS end, argMax(tail_sha256, end_offset) AS tail_sha256
FROM
(
    SELECT partition, epoch, end_offset, tail_sha256
    FROM ops.slice_intents
    WHERE source = {source:String}
    ORDER BY claimed_at, claim_id
    LIMIT 1 BY partition, epoch, start_offset, attempt
)
GROUP BY partition, epoch
