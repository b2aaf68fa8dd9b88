-- Trials and how many became subscriptions, with and without use of a configured feature.
SELECT
    sum(mart.trials) AS "trials",
    sum(mart.converted_trials) AS "converted",
    concat(toString(round(100 * sum(mart.converted_trials_with_feature_use)
        / sum(mart.trials_with_feature_use), 1)), ' %') AS "with feature use",
    concat(toString(round(100 * (sum(mart.converted_trials) - sum(mart.converted_trials_with_feature_use))
        / (sum(mart.trials) - sum(mart.trials_with_feature_use)), 1)), ' %') AS "without"
FROM marts.trial_conversion AS mart
WHERE mart.scope = 'all' AND mart.is_complete
