-- The running sums behind the trailing windows equal a plain recount of each window, over the last 14 days.
{{ config(
    meta={
        'description': 'Users of the trailing 7 and 30 days equal a plain recount of each window, over the last 14 days.',
        'dagster': {'ref': {'name': 'daily_active_users'}},
    }
) }}

with

mart as (
    select
        day,
        weekly_active_anonymous_users,
        weekly_business_active_users,
        monthly_active_anonymous_users,
        monthly_business_active_users
    from {{ ref('daily_active_users') }}
    where scope = 'all' and day >= {{ reporting_today() }} - 14
),

recount as (
    select
        mart.day as day,
        uniqExactIf(user_days.anonymous_user_id, user_days.day > mart.day - 7) as weekly_active_anonymous_users,
        uniqExactIf(user_days.anonymous_user_id, user_days.day > mart.day - 7 and user_days.is_business_active)
            as weekly_business_active_users,
        uniqExact(user_days.anonymous_user_id) as monthly_active_anonymous_users,
        uniqExactIf(user_days.anonymous_user_id, user_days.is_business_active) as monthly_business_active_users
    from mart
    cross join {{ ref('int_user_days') }} as user_days
    where user_days.day > mart.day - 30 and user_days.day <= mart.day
    group by mart.day
)

select * from ({{ differences('recount', 'mart') }})
