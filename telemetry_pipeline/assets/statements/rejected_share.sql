-- The share of rejected records over the last day, with their reasons.
SELECT
    sum(received) AS records,
    sum(arraySum(mapValues(rejected))) AS rejections,
    round(rejections / greatest(records, 1), 4) AS share,
    toString(sumMap(rejected)) AS by_reason
FROM ops.slice_results
WHERE finished_at >= now() - INTERVAL 1 DAY
