-- One row per scope, organisation (NULL in scope 'all'), day, chart, action and surface.
{{ config(order_by=['scope', 'org_id_hash', 'day', 'chart', 'action', 'surface']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

chart_interactions as (
    select * from {{ ref('stg_chart_interacted') }}
),

charts as (
    select
        scope_key,
        {{ reporting_day('occurred_at') }} as day,
        chart,
        action,
        surface,
        count() as interactions,
        uniqExact(session_id) as sessions,
        uniqExact(anonymous_user_id) as anonymous_users,
        uniqExact(org_id_hash) as organisations
    from chart_interactions
    array join {{ scope_keys() }} as scope_key
    group by scope_key, day, chart, action, surface
)

select
    {{ scope_columns() }},
    day,
    chart,
    action,
    surface,
    interactions,
    sessions,
    anonymous_users,
    organisations
from charts
