-- One row per client_error event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('boundary', 'String') }} as boundary,
    {{ payload('errorClass', 'String') }} as error_class
from events
where name = 'client_error'
