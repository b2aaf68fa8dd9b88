-- What the ledger knows of every epoch of every partition of a source.
SELECT
    partition,
    epoch,
    maxIf(end_offset, kind = 'claim') AS end,
    argMaxIf(tail_sha256, end_offset, kind = 'claim') AS tail_sha256,
    maxIf(end_offset, kind = 'loss') AS lost_end,
    maxIf(end_offset, kind = 'seen') AS seen_end
FROM
(
    SELECT 'claim' AS kind, partition, epoch, end_offset, tail_sha256
    FROM
    (
        SELECT partition, epoch, end_offset, tail_sha256
        FROM ops.slice_intents
        WHERE source = {source:String}
        ORDER BY claimed_at, claim_id
        LIMIT 1 BY partition, epoch, start_offset, attempt
    )
    UNION ALL
    SELECT 'loss', partition, epoch, end_offset, '' FROM ops.source_losses WHERE source = {source:String}
    UNION ALL
    SELECT 'seen', partition, epoch, seen_end, '' FROM ops.source_ends WHERE source = {source:String}
)
GROUP BY partition, epoch
