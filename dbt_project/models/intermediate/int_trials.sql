-- One row per organisation that ever started a trial: its first trial and what became of it.
{{ config(order_by=['org_id_hash']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

trial_starts as (
    select * from {{ ref('stg_trial_started') }}
    where org_id_hash is not null
),

subscription_starts as (
    select * from {{ ref('stg_subscription_started') }}
    where org_id_hash is not null
),

feature_user_days as (
    select * from {{ ref('int_feature_user_days') }}
),

trials as (
    select
        assumeNotNull(org_id_hash) as org_id_hash,
        min(occurred_at) as started_at,
        argMin(trial_days, (occurred_at, event_id)) as trial_days
    from trial_starts
    group by org_id_hash
),

subscriptions as (
    select
        assumeNotNull(org_id_hash) as org_id_hash,
        occurred_at
    from subscription_starts
),

-- A subscription from before the trial is another story.
conversions as (
    select
        trials.org_id_hash as org_id_hash,
        min(subscriptions.occurred_at) as converted_at
    from trials
    inner join subscriptions on trials.org_id_hash = subscriptions.org_id_hash
    where subscriptions.occurred_at >= trials.started_at
    group by org_id_hash
),

trials_with_days as (
    select
        trials.org_id_hash as org_id_hash,
        {{ reporting_day('trials.started_at') }} as started_day,
        trials.trial_days as trial_days,
        addDays(started_day, trial_days) as trial_end_day,
        toBool(conversions.org_id_hash != 0) as is_converted,
        if(is_converted, {{ reporting_day('conversions.converted_at') }}, null) as converted_day
    from trials
    left join conversions on trials.org_id_hash = conversions.org_id_hash
),

-- Use that could have led to the conversion: during the trial, and not after it was bought.
use_in_trial as (
    select distinct feature_user_days.org_id_hash as org_id_hash
    from feature_user_days
    inner join trials_with_days on feature_user_days.org_id_hash = trials_with_days.org_id_hash
    where
        feature_user_days.day >= trials_with_days.started_day
        and feature_user_days.day < trials_with_days.trial_end_day
        and (not trials_with_days.is_converted or feature_user_days.day <= trials_with_days.converted_day)
)

select
    org_id_hash,
    started_day,
    trial_days,
    trial_end_day,
    is_converted,
    converted_day,
    toBool(org_id_hash in (select use_in_trial.org_id_hash from use_in_trial)) as used_feature_in_trial
from trials_with_days
