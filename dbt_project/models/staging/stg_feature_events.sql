-- One row per feature of telemetry.yaml and event that adopts it.
with

reporting_config as (
    select * from {{ source('ops', 'reporting_config') }}
)

select
    item as feature,
    event_name,
    flag_key
from reporting_config
where section = 'feature'
