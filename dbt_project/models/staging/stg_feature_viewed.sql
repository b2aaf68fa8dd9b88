-- One row per feature_viewed event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('feature', 'String') }} as feature,
    {{ payload('surface', 'String') }} as surface
from events
where name = 'feature_viewed'
