-- An organisation's rows equal a recount of its raw events, as the overall rows do.
{{ config(
    meta={
        'description': 'The rows of each organisation equal a recount of its raw events over the last 30 days.',
        'dagster': {'ref': {'name': 'daily_active_users'}},
    }
) }}

with

business_events as (
    select event_name as name from {{ ref('stg_event_classes') }}
    where event_class = 'business'
),

recount as (
    select
        org_id_hash,
        {{ reporting_day('occurred_at') }} as day,
        uniqExact(anonymous_user_id) as active_anonymous_users,
        uniqExactIf(anonymous_user_id, name in (select business_events.name from business_events))
            as business_active_users,
        countIf(anonymous_user_id is not null) as events
    from {{ source('raw', 'product_telemetry_events') }}
    where org_id_hash is not null and {{ in_reference_window(reporting_day('occurred_at')) }}
    group by org_id_hash, day
    having active_anonymous_users > 0
),

mart as (
    select
        org_id_hash,
        day,
        active_anonymous_users,
        business_active_users,
        events
    from {{ ref('daily_active_users') }}
    where scope = 'organisation' and {{ in_reference_window('day') }} and active_anonymous_users > 0
)

select *
from ({{ differences('recount', 'mart') }})
where day not in ({{ days_touched_since_build() }})
