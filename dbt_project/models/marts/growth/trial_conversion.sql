-- One row per scope, organisation (NULL in scope 'all') and ISO week in which trials started.
{{ config(order_by=['scope', 'org_id_hash', 'cohort_week']) }}

with

trials as (
    select * from {{ ref('int_trials') }}
),

cohorts as (
    select
        scope_key,
        {{ iso_week('started_day') }} as cohort_week,
        count() as trials,
        countIf(is_converted) as converted_trials,
        countIf(is_converted and converted_day < trial_end_day) as converted_within_trial,
        quantileExactInclusiveOrNullIf(0.5)(dateDiff('day', started_day, converted_day), is_converted)  -- noqa: LT01
            as median_days_to_convert,
        countIf(used_feature_in_trial) as trials_with_feature_use,
        countIf(used_feature_in_trial and is_converted) as converted_trials_with_feature_use,
        max(trial_end_day) as last_trial_end_day
    from trials
    array join [toUInt64(0), org_id_hash] as scope_key
    group by scope_key, cohort_week
)

select
    {{ scope_columns() }},
    cohort_week,
    trials,
    converted_trials,
    converted_trials / trials as conversion_rate,
    converted_within_trial,
    median_days_to_convert,
    trials_with_feature_use,
    converted_trials_with_feature_use,
    {{ is_over('greatest(addWeeks(cohort_week, 1), last_trial_end_day)') }} as is_complete
from cohorts
