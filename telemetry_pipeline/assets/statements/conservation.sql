-- received = accepted + duplicates + sum(rejected) + sum(dropped), batch by batch.
SELECT
    count() AS batches,
    sum(received) AS received,
    sum(accepted) AS accepted,
    sum(duplicates) AS duplicates,
    sum(arraySum(mapValues(rejected))) AS rejected,
    sum(arraySum(mapValues(dropped))) AS dropped,
    countIf(
        received != accepted + duplicates + arraySum(mapValues(rejected)) + arraySum(mapValues(dropped))
    ) AS broken_batches
FROM ops.slice_results
