-- One row per scheduled_change.failed event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('environmentKind', 'String') }} as environment_kind,
    {{ payload('errorClass', 'String') }} as error_class,
    {{ payload('flagChangeRequests', 'Nullable(Bool)') }} as flag_change_requests,
    {{ payload('flagScheduledChanges', 'Nullable(Bool)') }} as flag_scheduled_changes,
    {{ payload('plan', 'Nullable(String)') }} as plan
from events
where name = 'scheduled_change.failed'
