-- Everybody is a new user on exactly one day.
{{ config(
    meta={
        'description': 'New users over all days are the distinct users ever seen.',
        'dagster': {'ref': {'name': 'daily_active_users'}},
    }
) }}

with

new_users as (
    select sum(new_users) as users from {{ ref('daily_active_users') }}
    where scope = 'all'
),

seen_users as (
    select uniqExact(anonymous_user_id) as users from {{ ref('int_first_seen') }}
)

select * from ({{ differences('new_users', 'seen_users') }})
