-- received = accepted + duplicates + sum(rejected) + sum(dropped), batch by batch.
SELECT
    count() AS batches,
    countIf(
        result.received != result.accepted + result.duplicates
            + arraySum(mapValues(result.rejected)) + arraySum(mapValues(result.dropped))
    ) AS broken_batches,
    sum(result.received) AS records_received,
    sum(result.accepted) AS records_accepted,
    sum(result.duplicates) AS records_twice,
    sum(arraySum(mapValues(result.rejected))) AS records_rejected,
    sum(arraySum(mapValues(result.dropped))) AS records_dropped
FROM ops.slice_results AS result
