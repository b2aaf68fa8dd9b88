-- Sums over a source's results, in log records.
SELECT
    source,
    sum(results.received) AS received,
    sum(results.accepted) AS accepted,
    sum(results.duplicates) AS duplicates,
    sumMap(results.rejected) AS rejected,
    sumMap(results.dropped) AS dropped,
    count() AS slices,
    countIf(attempt > 1) AS later_attempts
FROM ops.slice_results AS results
GROUP BY source
