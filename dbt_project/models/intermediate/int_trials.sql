-- One row per organisation that ever started a trial: its first trial and what became of it.
{{ config(order_by=['org_id_hash']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

trials as (
    select
        assumeNotNull(org_id_hash) as org_id_hash,
        min(occurred_at) as started_at,
        argMin(trial_days, (occurred_at, event_id)) as trial_days
    from {{ ref('stg_trial_started') }}
    where org_id_hash is not null
    group by org_id_hash
),

subscriptions as (
    select
        assumeNotNull(org_id_hash) as org_id_hash,
        occurred_at
    from {{ ref('stg_subscription_started') }}
    where org_id_hash is not null
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
    select distinct used.org_id_hash as org_id_hash
    from {{ ref('int_feature_user_days') }} as used
    inner join trials_with_days on used.org_id_hash = trials_with_days.org_id_hash
    where
        used.day >= trials_with_days.started_day
        and used.day < trials_with_days.trial_end_day
        and (not trials_with_days.is_converted or used.day <= trials_with_days.converted_day)
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
