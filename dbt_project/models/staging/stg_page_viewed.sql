-- One row per page_viewed event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('flagChangeRequests', 'Nullable(Bool)') }} as flag_change_requests,
    {{ payload('flagScheduledChanges', 'Nullable(Bool)') }} as flag_scheduled_changes,
    {{ payload('plan', 'Nullable(String)') }} as plan
from events
where name = 'page_viewed'
