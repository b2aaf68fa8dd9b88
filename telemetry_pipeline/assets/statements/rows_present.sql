-- Rows that landed on each (batch, day) against rows that are there now. A day leaves the count
-- one day before its rows may expire; removals stand in the adjustments.
WITH
    recent AS
    (
        SELECT batch_id FROM ops.slice_results
        WHERE finished_at >= now() - toIntervalDay({batch_days:UInt32})
    ),
    landed AS
    (
        SELECT batch_id, day, sum(records) AS records
        FROM ops.touches
        WHERE kind = 'landed' AND batch_id IN (SELECT batch_id FROM recent)
            AND (batch_id, attempt) IN (SELECT batch_id, attempt FROM ops.slice_results)
            AND day > toDate(now(), {timezone:String}) - {retention_days:UInt32} + 1
        GROUP BY batch_id, day
    ),
    present AS
    (
        SELECT batch_id, count() AS records
        FROM raw.product_telemetry_events_storage
        WHERE batch_id IN (SELECT batch_id FROM recent)
            AND toDate(occurred_at, {timezone:String}) > toDate(now(), {timezone:String}) - {retention_days:UInt32} + 1
        GROUP BY batch_id
    ),
    expected AS
    (
        SELECT batch_id, sum(landed.records) AS records FROM landed GROUP BY batch_id
    ),
    -- Copies that a batch gave up before its result: more landed than the result says.
    yielded AS
    (
        SELECT touches.batch_id AS batch_id, sum(touches.records) - any(results.accepted) AS records
        FROM ops.touches AS touches
        INNER JOIN ops.slice_results AS results
            ON touches.batch_id = results.batch_id AND touches.attempt = results.attempt
        WHERE touches.kind = 'landed'
            AND touches.batch_id IN (SELECT higher_batch_id FROM ops.raced_copies UNION ALL SELECT lower_batch_id FROM ops.raced_copies)
        GROUP BY batch_id
    ),
    removed AS
    (
        SELECT batch_id, sum(part.records) AS records
        FROM
        (
            SELECT batch_id, records
            FROM ops.ledger_adjustments
            -- Dead letters have adjustments of their own.
            WHERE kind NOT IN ('letters_purged', 'letters_erased')
            UNION ALL
            SELECT batch_id, toUInt64(records) FROM yielded
        ) AS part
        GROUP BY batch_id
    )
SELECT
    count() AS batches,
    sum(expected.records) AS accepted,
    sum(present.records) AS present,
    sum(removed.records) AS removed_on_record,
    countIf(expected.records != present.records + removed.records) AS broken
FROM expected
LEFT JOIN present ON expected.batch_id = present.batch_id
LEFT JOIN removed ON expected.batch_id = removed.batch_id
