-- Records by which the figures of batches disagree, by what disagrees.
WITH
    results AS
    (
        SELECT
            batch_id, any(attempt) AS attempt, count() AS written, sum(slice_results.received) AS received,
            sum(slice_results.accepted) AS accepted, sum(slice_results.duplicates) AS duplicates,
            sum(arraySum(mapValues(slice_results.rejected))) AS rejected,
            sum(arraySum(mapValues(slice_results.dropped))) AS dropped
        FROM ops.slice_results
        GROUP BY batch_id
    ),
    removed AS
    (
        SELECT batch_id, sum(ops.ledger_adjustments.records) AS records
        FROM ops.ledger_adjustments GROUP BY batch_id
    ),
    present AS
    (
        SELECT batch_id, count() AS records FROM raw.product_telemetry_events GROUP BY batch_id
    ),
    letters AS
    (
        SELECT batch_id, count() AS records FROM raw.dead_letters GROUP BY batch_id
    ),
    counts AS
    (
        SELECT batch_id, sum(slice_counts.records) AS records FROM ops.slice_counts GROUP BY batch_id
    ),
    touched AS
    (
        SELECT batch_id, attempt, sum(touches.records) AS records
        FROM ops.touches WHERE kind = 'landed' GROUP BY batch_id, attempt
    ),
    -- Batches that gave up copies before their result: more of their rows landed than it says.
    yielding AS
    (
        SELECT DISTINCT yields_batch_id AS batch_id FROM ops.raced_copies
    ),
    all_batches AS
    (
        SELECT batch_id FROM results
        UNION DISTINCT SELECT batch_id FROM present
        UNION DISTINCT SELECT batch_id FROM letters
        UNION DISTINCT SELECT batch_id FROM counts
    ),
    joined AS
    (
        SELECT
            all_batches.batch_id AS batch_id, results.attempt AS attempt, written, results.received AS received,
            results.accepted AS accepted, results.duplicates AS duplicates, results.rejected AS rejected,
            results.dropped AS dropped,
            removed.records AS removed_records,
            present.records AS present_records,
            letters.records AS letter_records,
            counts.records AS count_records,
            touched.records AS touched_records
        FROM all_batches
        LEFT JOIN results ON all_batches.batch_id = results.batch_id
        LEFT JOIN removed ON all_batches.batch_id = removed.batch_id
        LEFT JOIN present ON all_batches.batch_id = present.batch_id
        LEFT JOIN letters ON all_batches.batch_id = letters.batch_id
        LEFT JOIN counts ON all_batches.batch_id = counts.batch_id
        LEFT JOIN touched ON results.batch_id = touched.batch_id AND results.attempt = touched.attempt
    ),
    problems AS
    (
        SELECT
            sum(abs(toInt64(received) - toInt64(accepted + duplicates + rejected + dropped))) AS results_do_not_add_up,
            sum(abs(toInt64(present_records) - (toInt64(accepted) - toInt64(removed_records)))) AS rows_of_batches,
            sum(abs(toInt64(letter_records) - toInt64(rejected))) AS dead_letters_of_batches,
            sum(abs(toInt64(count_records) - toInt64(received))) AS counts_of_batches,
            sum(if(
                batch_id IN (yielding) AND touched_records >= accepted AND touched_records <= accepted + duplicates,
                0, abs(toInt64(touched_records) - toInt64(accepted))
            )) AS touches_of_batches,
            sum(greatest(written, 1) - 1) AS second_results
        FROM joined
    )
SELECT 'results do not add up' AS problem, toUInt64(results_do_not_add_up) AS records FROM problems
UNION ALL SELECT 'rows of batches', toUInt64(rows_of_batches) FROM problems
UNION ALL SELECT 'dead letters of batches', toUInt64(dead_letters_of_batches) FROM problems
UNION ALL SELECT 'counts of batches', toUInt64(counts_of_batches) FROM problems
UNION ALL SELECT 'touches of batches', toUInt64(touches_of_batches) FROM problems
UNION ALL SELECT 'second results', toUInt64(second_results) FROM problems
UNION ALL SELECT 'slices left open', count() FROM ops.ingest_ledger WHERE state = 'open'
UNION ALL SELECT 'ranges recorded as lost', count() FROM ops.source_losses
