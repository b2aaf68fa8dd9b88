-- session_durations equals the reference query "Session duration distribution", day by day over the last 30 days.
{{ config(
    meta={
        'description': 'Equals the reference query "Session duration distribution" on the raw events, day by day over the last 30 days.',
        'dagster': {'ref': {'name': 'session_durations'}},
    }
) }}

with

reference_query as (
    select
        {{ reporting_day('occurred_at') }} as day,
        count() as sessions_ended,
        quantiles(0.5, 0.75, 0.9, 0.95)(JSONExtractInt(payload_json, 'durationMs'))  -- noqa: LT01
            as duration_ms_quantiles,
        avg(JSONExtractInt(payload_json, 'pagesViewed')) as avg_pages_viewed,
        avg(JSONExtractInt(payload_json, 'interactions')) as avg_interactions
    from {{ source('raw', 'product_telemetry_events') }}
    where name = 'session_ended' and {{ in_reference_window(reporting_day('occurred_at')) }}
    group by day
),

mart as (
    select
        day,
        sessions_ended,
        [duration_ms_p50, duration_ms_p75, duration_ms_p90, duration_ms_p95] as duration_ms_quantiles,
        avg_pages_viewed,
        avg_interactions
    from {{ ref('session_durations') }}
    where scope = 'all' and sessions_ended > 0 and {{ in_reference_window('day') }}
),

reference_counts as (
    select
        day,
        sessions_ended
    from reference_query
),

mart_counts as (
    select
        day,
        sessions_ended
    from mart
),

-- quantiles() keeps a sample of 8192 values, so only up to there do both know the exact answer.
different_values as (
    select
        'other values' as side,
        reference_query.day as day,
        reference_query.sessions_ended as sessions_ended
    from reference_query
    inner join mart on reference_query.day = mart.day
    where
        arrayExists(
            (expected, actual) -> abs(expected - actual)  -- noqa: RF02
            > (1 + expected) * if(sessions_ended <= 8192, 1e-9, 0.05),  -- noqa: RF02
            reference_query.duration_ms_quantiles,
            mart.duration_ms_quantiles
        )
        or abs(reference_query.avg_pages_viewed - mart.avg_pages_viewed) > 1e-9
        or abs(reference_query.avg_interactions - mart.avg_interactions) > 1e-9
)

select *
from (
    {{ differences('reference_counts', 'mart_counts') }}
    union all
    select * from different_values
)
where day not in ({{ days_touched_since_build() }})
