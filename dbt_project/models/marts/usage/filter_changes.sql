-- One row per scope, organisation (NULL in scope 'all'), day, view and filter key.
{{ config(order_by=['scope', 'org_id_hash', 'day', 'view', 'filter_key']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

filter_changes as (
    select * from {{ ref('stg_filter_changed') }}
),

filters as (
    select
        scope_key,
        {{ reporting_day('occurred_at') }} as day,
        view,
        filter_key,
        count() as changes,
        sum(value_count) as values_selected,
        uniqExact(anonymous_user_id) as anonymous_users,
        uniqExact(org_id_hash) as organisations
    from filter_changes
    array join {{ scope_keys() }} as scope_key
    group by scope_key, day, view, filter_key
)

select
    {{ scope_columns() }},
    day,
    view,
    filter_key,
    changes,
    values_selected,
    values_selected / changes as avg_value_count,
    anonymous_users,
    organisations
from filters
