-- Over all first-time cohorts everybody is counted once.
{{ config(
    meta={
        'description': 'First-time cohorts together are the distinct users ever seen.',
        'dagster': {'ref': {'name': 'retention_weekly'}},
    }
) }}

with

cohort_users as (
    select sum(cohort_users) as users from {{ ref('retention_weekly') }}
    where scope = 'all' and activity = 'any_event' and retention_kind = 'first_time' and week_number = 0
),

seen_users as (
    select uniqExact(anonymous_user_id) as users from {{ ref('int_first_seen') }}
)

select * from ({{ differences('cohort_users', 'seen_users') }})
