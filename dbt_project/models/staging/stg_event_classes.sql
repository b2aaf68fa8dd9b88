-- One row per catalogued event name.
with

catalog_events as (
    select * from {{ source('ops', 'catalog_events') }} final
)

select
    name as event_name,
    class as event_class
from catalog_events
