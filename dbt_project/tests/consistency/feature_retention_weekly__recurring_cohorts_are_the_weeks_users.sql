-- A recurring cohort is everybody who used the feature in the week.
{{ config(
    meta={
        'description': 'Recurring cohorts are the distinct users of the feature in the week, by organisation.',
        'dagster': {'ref': {'name': 'feature_retention_weekly'}},
    }
) }}

with

cohorts as (
    select
        org_id_hash,
        feature,
        cohort_week as week,
        cohort_users as users
    from {{ ref('feature_retention_weekly') }}
    where scope = 'organisation' and retention_kind = 'recurring' and week_number = 0
),

weeks as (
    select
        org_id_hash,
        feature,
        {{ iso_week('day') }} as week,
        uniqExact(anonymous_user_id) as users
    from {{ ref('int_feature_user_days') }}
    where org_id_hash is not null
    group by org_id_hash, feature, week
)

select * from ({{ differences('cohorts', 'weeks') }})
