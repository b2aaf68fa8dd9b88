-- daily_active_users equals the reference query "Daily active anonymous users", day by day over the last 30 days.
{{ config(
    meta={
        'description': 'Equals the reference query "Daily active anonymous users" on the raw events, day by day over the last 30 days.',
        'dagster': {'ref': {'name': 'daily_active_users'}},
    }
) }}

with

reference_query as (
    select
        {{ reporting_day('occurred_at') }} as day,
        uniqExact(anonymous_user_id) as active_anonymous_users
    from {{ source('raw', 'product_telemetry_events') }}
    where {{ in_reference_window(reporting_day('occurred_at')) }}
    group by day
    -- A day may have events of nobody; the mart has rows for days without events, too.
    having active_anonymous_users > 0
),

mart as (
    select
        day,
        active_anonymous_users
    from {{ ref('daily_active_users') }}
    where scope = 'all' and {{ in_reference_window('day') }} and active_anonymous_users > 0
)

select *
from ({{ differences('reference_query', 'mart') }})
where day not in ({{ days_touched_since_build() }})
