-- One row per filter_changed event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('view', 'String') }} as view,
    {{ payload('filterKey', 'String') }} as filter_key,
    {{ payload('valueCount', 'Int64') }} as value_count
from events
where name = 'filter_changed'
