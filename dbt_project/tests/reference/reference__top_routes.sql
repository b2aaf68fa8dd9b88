-- top_routes equals the reference query "Top route patterns", day by day over the last 30 days.
{{ config(
    meta={
        'description': 'Equals the reference query "Top route patterns" on the raw events, day by day over the last 30 days.',
        'dagster': {'ref': {'name': 'top_routes'}},
    }
) }}

with

reference_query as (
    select
        {{ reporting_day('occurred_at') }} as day,
        route_pattern,
        count() as events,
        uniqExact(session_id) as sessions,
        uniqExact(anonymous_user_id) as anonymous_users
    from {{ source('raw', 'product_telemetry_events') }}
    where name = 'page_viewed' and {{ in_reference_window(reporting_day('occurred_at')) }}
    group by day, route_pattern
),

mart as (
    select
        day,
        route_pattern,
        events,
        sessions,
        anonymous_users
    from {{ ref('top_routes') }}
    where scope = 'all' and {{ in_reference_window('day') }}
)

select *
from ({{ differences('reference_query', 'mart') }})
where day not in ({{ days_touched_since_build() }})
