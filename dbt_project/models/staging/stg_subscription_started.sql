-- One row per subscription_started event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('subscriptionPlan', 'String') }} as subscription_plan
from events
where name = 'subscription_started'
