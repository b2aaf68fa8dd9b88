-- Adoption of the configured features over all organisations, the last closed weeks.
SELECT
    mart.feature AS "feature",
    toString(mart.week) AS "week of",
    mart.eligible_users AS "eligible",
    mart.adopters AS "adopters",
    concat(toString(round(100 * mart.adoption_rate, 1)), ' %') AS "rate",
    round(mart.median_days_to_adopt, 1) AS "median days"
FROM marts.feature_adoption AS mart
WHERE mart.scope = 'all' AND mart.is_complete AND mart.feature != '(any)'
ORDER BY mart.feature, mart.week DESC
LIMIT 3 BY mart.feature
