-- Records rejected in each batch against dead letters that are there now. A batch leaves the count a
-- day before its letters may expire. What a purge listed is gone from the moment that the ledger
-- counts it, so that the sum holds at every step of the purge.
WITH
    recent AS
    (
        SELECT results.batch_id AS batch_id, arraySum(mapValues(results.rejected)) AS records
        FROM ops.slice_results AS results
        INNER JOIN ops.slice_intents AS intents
            ON results.batch_id = intents.batch_id AND results.attempt = intents.attempt
        WHERE intents.slice_time > now64(3, 'UTC') - toIntervalDay({retention_days:UInt32}) + toIntervalDay(1)
        LIMIT 1 BY batch_id
    ),
    present AS
    (
        SELECT batch_id, count() AS records
        FROM raw.dead_letters
        WHERE batch_id IN (SELECT batch_id FROM recent)
            AND (batch_id, attempt, source_position) NOT IN
            (
                SELECT batch_id, attempt, source_position
                FROM ops.dead_letter_purge_items
                WHERE concat('purge ', toString(purge_id)) IN
                    (SELECT reason FROM ops.ledger_adjustments WHERE kind = 'letters_purged')
            )
        GROUP BY batch_id
    ),
    removed AS
    (
        SELECT batch_id, sum(ops.ledger_adjustments.records) AS records
        FROM ops.ledger_adjustments
        WHERE kind IN ('letters_purged', 'letters_erased')
        GROUP BY batch_id
    )
SELECT
    count() AS batches,
    sum(recent.records) AS rejected,
    sum(present.records) AS present,
    sum(removed.records) AS removed_on_record,
    countIf(recent.records != present.records + removed.records) AS broken
FROM recent
LEFT JOIN present ON recent.batch_id = present.batch_id
LEFT JOIN removed ON recent.batch_id = removed.batch_id
