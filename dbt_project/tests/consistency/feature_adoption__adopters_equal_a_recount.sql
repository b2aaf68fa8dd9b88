-- Adopters over all organisations equal a recount of days of use by users active in that organisation and week.
{{ config(
    meta={
        'description': 'Adopters of each feature and week equal a plain recount of active users who used it.',
        'dagster': {'ref': {'name': 'feature_adoption'}},
    }
) }}

with

active_weeks as (
    select distinct
        org_id_hash,
        anonymous_user_id,
        {{ iso_week('day') }} as week
    from {{ ref('int_user_days') }}
    where is_business_active
),

recount as (
    select
        toString(used.feature) as feature,
        {{ iso_week('used.day') }} as week,
        uniqExact(used.anonymous_user_id) as adopters
    from {{ ref('int_feature_user_days') }} as used
    inner join active_weeks
        on
            used.org_id_hash = active_weeks.org_id_hash
            and used.anonymous_user_id = active_weeks.anonymous_user_id
            and {{ iso_week('used.day') }} = active_weeks.week
    group by feature, week
),

mart as (
    select
        feature,
        week,
        adopters
    from {{ ref('feature_adoption') }}
    where scope = 'all' and feature != '(any)' and adopters > 0
)

select * from ({{ differences('recount', 'mart') }})
