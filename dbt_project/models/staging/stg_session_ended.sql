-- One row per session_ended event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('durationMs', 'Int64') }} as duration_ms,
    {{ payload('pagesViewed', 'Int64') }} as pages_viewed,
    {{ payload('interactions', 'Int64') }} as interactions
from events
where name = 'session_ended'
