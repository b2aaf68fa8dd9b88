-- Recurring weekly retention of the configured features, averaged over cohorts by their size.
SELECT
    mart.feature AS "feature",
    concat('week ', toString(mart.week_number)) AS "after",
    sum(mart.cohort_users) AS "users",
    concat(toString(round(100 * sum(mart.returned_users) / sum(mart.cohort_users), 1)), ' %') AS "returned"
FROM marts.feature_retention_weekly AS mart
WHERE mart.scope = 'all' AND mart.is_complete AND mart.retention_kind = 'recurring'
    AND mart.week_number BETWEEN 1 AND 3
GROUP BY mart.feature, mart.week_number
ORDER BY mart.feature, mart.week_number
