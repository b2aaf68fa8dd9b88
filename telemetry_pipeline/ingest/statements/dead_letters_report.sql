-- What came of one replay, from its items and the ledger.
SELECT
    count() AS items,
    countIf(state = 'settled') AS judged,
    countIf(state = 'passed') AS gone,
    countIf(state = 'lost') AS lost,
    countIf(state IN ('open', 'pending')) AS waiting,
    (
        SELECT (
            sum(received), sum(accepted), sum(duplicates), sumMap(rejected), sumMap(dropped)
        )
        FROM ops.slice_results
        WHERE source = 'dead_letters' AND partition = {replay_id:String}
    ) AS results
FROM ops.dead_letter_replay_progress
WHERE replay_id = toUUID({replay_id:String})
