-- One row per scope, organisation (NULL in scope 'all'), day, feature and surface.
{{ config(order_by=['scope', 'org_id_hash', 'day', 'feature', 'surface']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

feature_views as (
    select * from {{ ref('stg_feature_viewed') }}
),

features as (
    select
        scope_key,
        {{ reporting_day('occurred_at') }} as day,
        feature,
        surface,
        count() as views,
        uniqExact(anonymous_user_id) as anonymous_users,
        uniqExact(org_id_hash) as organisations
    from feature_views
    array join {{ scope_keys() }} as scope_key
    group by scope_key, day, feature, surface
)

select
    {{ scope_columns() }},
    day,
    feature,
    surface,
    views,
    anonymous_users,
    organisations
from features
