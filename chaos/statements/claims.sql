-- For every run, its claims: from when to when their owner could still do something with them, in
-- seconds since the epoch. A settled claim ends with its result, another one when the next attempt
-- is claimed, at the latest after its deadline and the longest insert.
WITH owned AS
(
    SELECT batch_id, attempt, run_id, claimed_at, deadline
    FROM ops.slice_intents
    ORDER BY claimed_at, claim_id
    LIMIT 1 BY source, partition, epoch, start_offset, attempt
)
SELECT
    owned.run_id AS run_id,
    toUnixTimestamp64Micro(owned.claimed_at) / 1e6 AS began,
    least(
        if(results.batch_id = 0, 1e18, toUnixTimestamp64Micro(results.finished_at) / 1e6),
        if(later.batch_id = 0, 1e18, toUnixTimestamp64Micro(later.claimed_at) / 1e6),
        toUnixTimestamp64Milli(owned.deadline) / 1e3 + {insert_seconds:UInt32}
    ) AS ended
FROM owned
LEFT JOIN ops.slice_results AS results ON owned.batch_id = results.batch_id
LEFT JOIN owned AS later ON owned.batch_id = later.batch_id AND later.attempt = owned.attempt + 1
