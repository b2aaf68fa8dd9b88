-- feature_views equals the reference query "Feature usage", day by day over the last 30 days.
{{ config(
    meta={
        'description': 'Equals the reference query "Feature usage" on the raw events, day by day over the last 30 days.',
        'dagster': {'ref': {'name': 'feature_views'}},
    }
) }}

with

reference_query as (
    select
        {{ reporting_day('occurred_at') }} as day,
        JSONExtractString(payload_json, 'feature') as feature,
        JSONExtractString(payload_json, 'surface') as surface,
        count() as views,
        uniqExact(anonymous_user_id) as anonymous_users
    from {{ source('raw', 'product_telemetry_events') }}
    where name = 'feature_viewed' and {{ in_reference_window(reporting_day('occurred_at')) }}
    group by day, feature, surface
),

mart as (
    select
        day,
        feature,
        surface,
        views,
        anonymous_users
    from {{ ref('feature_views') }}
    where scope = 'all' and {{ in_reference_window('day') }}
)

select *
from ({{ differences('reference_query', 'mart') }})
where day not in ({{ days_touched_since_build() }})
