-- An event without a class would silently count as technical.
{{ config(
    meta={
        'description': 'Every event name in the raw view is catalogued.',
        'dagster': {'ref': {'name': 'stg_event_classes'}},
    }
) }}

with

event_classes as (
    select * from {{ ref('stg_event_classes') }}
)

select distinct name
from {{ source('raw', 'product_telemetry_events') }}
where name not in (select event_classes.event_name from event_classes)
