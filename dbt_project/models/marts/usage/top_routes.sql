-- One row per scope, organisation (NULL in scope 'all'), day and route pattern (NULL: none).
{{ config(order_by=['scope', 'org_id_hash', 'day', 'route_pattern']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

page_views as (
    select * from {{ ref('stg_page_viewed') }}
),

routes as (
    select
        scope_key,
        {{ reporting_day('occurred_at') }} as day,
        route_pattern,
        count() as events,
        uniqExact(session_id) as sessions,
        uniqExact(anonymous_user_id) as anonymous_users,
        uniqExact(org_id_hash) as organisations
    from page_views
    array join {{ scope_keys() }} as scope_key
    group by scope_key, day, route_pattern
)

select
    {{ scope_columns() }},
    day,
    route_pattern,
    events,
    sessions,
    anonymous_users,
    organisations
from routes
