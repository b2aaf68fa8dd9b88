-- No event of a known user is lost or counted twice on the way to user-days.
{{ config(
    meta={
        'description': 'Events of known users, by day, are as many as in the raw view.',
        'dagster': {'ref': {'name': 'int_user_days'}},
    }
) }}

with

raw_events as (
    select
        {{ reporting_day('occurred_at') }} as day,
        count() as events
    from {{ source('raw', 'product_telemetry_events') }}
    where anonymous_user_id is not null
    group by day
),

user_days as (
    select
        day,
        sum(events) as events
    from {{ ref('int_user_days') }}
    group by day
)

select *
from ({{ differences('raw_events', 'user_days') }})
where day not in ({{ days_touched_since_build() }})
