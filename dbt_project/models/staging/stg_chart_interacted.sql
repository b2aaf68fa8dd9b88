-- One row per chart_interacted event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('chart', 'String') }} as chart,
    {{ payload('action', 'String') }} as action,
    {{ payload('surface', 'String') }} as surface
from events
where name = 'chart_interacted'
