-- chart_interactions equals the reference query "Chart interactions", day by day over the last 30 days.
{{ config(
    meta={
        'description': 'Equals the reference query "Chart interactions" on the raw events, day by day over the last 30 days.',
        'dagster': {'ref': {'name': 'chart_interactions'}},
    }
) }}

with

reference_query as (
    select
        {{ reporting_day('occurred_at') }} as day,
        JSONExtractString(payload_json, 'chart') as chart,
        JSONExtractString(payload_json, 'action') as action,
        JSONExtractString(payload_json, 'surface') as surface,
        count() as interactions,
        uniqExact(session_id) as sessions
    from {{ source('raw', 'product_telemetry_events') }}
    where name = 'chart_interacted' and {{ in_reference_window(reporting_day('occurred_at')) }}
    group by day, chart, action, surface
),

mart as (
    select
        day,
        chart,
        action,
        surface,
        interactions,
        sessions
    from {{ ref('chart_interactions') }}
    where scope = 'all' and {{ in_reference_window('day') }}
)

select *
from ({{ differences('reference_query', 'mart') }})
where day not in ({{ days_touched_since_build() }})
