-- One row per trial_started event.
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
)

select
    {{ event_columns() }},
    {{ payload('trialDays', 'Int64') }} as trial_days,
    {{ payload('plan', 'Nullable(String)') }} as plan
from events
where name = 'trial_started'
