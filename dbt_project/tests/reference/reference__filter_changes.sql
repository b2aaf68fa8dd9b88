-- filter_changes equals the reference query "Filter changes", day by day over the last 30 days.
{{ config(
    meta={
        'description': 'Equals the reference query "Filter changes" on the raw events, day by day over the last 30 days.',
        'dagster': {'ref': {'name': 'filter_changes'}},
    }
) }}

with

reference_query as (
    select
        {{ reporting_day('occurred_at') }} as day,
        JSONExtractString(payload_json, 'view') as view,
        JSONExtractString(payload_json, 'filterKey') as filter_key,
        count() as changes,
        avg(JSONExtractInt(payload_json, 'valueCount')) as avg_value_count
    from {{ source('raw', 'product_telemetry_events') }}
    where name = 'filter_changed' and {{ in_reference_window(reporting_day('occurred_at')) }}
    group by day, view, filter_key
),

mart as (
    select
        day,
        view,
        filter_key,
        changes,
        avg_value_count
    from {{ ref('filter_changes') }}
    where scope = 'all' and {{ in_reference_window('day') }}
)

select *
from ({{ differences('reference_query', 'mart') }})
where day not in ({{ days_touched_since_build() }})
