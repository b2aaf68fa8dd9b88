-- One row per scope, organisation (NULL in scope 'all'), day, route pattern (NULL: none), boundary and error class.
{{ config(order_by=['scope', 'org_id_hash', 'day', 'route_pattern', 'boundary', 'error_class']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

client_errors as (
    select * from {{ ref('stg_client_error') }}
),

errors as (
    select
        scope_key,
        {{ reporting_day('occurred_at') }} as day,
        route_pattern,
        boundary,
        error_class,
        count() as errors,
        uniqExact(anonymous_user_id) as affected_anonymous_users,
        uniqExact(org_id_hash) as organisations
    from client_errors
    array join {{ scope_keys() }} as scope_key
    group by scope_key, day, route_pattern, boundary, error_class
)

select
    {{ scope_columns() }},
    day,
    route_pattern,
    boundary,
    error_class,
    errors,
    affected_anonymous_users,
    organisations
from errors
