-- client_errors equals the reference query "Client errors", day by day over the last 30 days.
{{ config(
    meta={
        'description': 'Equals the reference query "Client errors" on the raw events, day by day over the last 30 days.',
        'dagster': {'ref': {'name': 'client_errors'}},
    }
) }}

with

reference_query as (
    select
        {{ reporting_day('occurred_at') }} as day,
        route_pattern,
        JSONExtractString(payload_json, 'boundary') as boundary,
        JSONExtractString(payload_json, 'errorClass') as error_class,
        count() as errors,
        uniqExact(anonymous_user_id) as affected_anonymous_users
    from {{ source('raw', 'product_telemetry_events') }}
    where name = 'client_error' and {{ in_reference_window(reporting_day('occurred_at')) }}
    group by day, route_pattern, boundary, error_class
),

mart as (
    select
        day,
        route_pattern,
        boundary,
        error_class,
        errors,
        affected_anonymous_users
    from {{ ref('client_errors') }}
    where scope = 'all' and {{ in_reference_window('day') }}
)

select *
from ({{ differences('reference_query', 'mart') }})
where day not in ({{ days_touched_since_build() }})
