-- Events with a session or a user are in exactly one session. Asked only when nothing arrived since the build began:
-- a session's events may lie on other days than the one it is counted on.
{{ config(
    meta={
        'description': 'Events with a session or a user are in exactly one session each.',
        'dagster': {'ref': {'name': 'int_sessions'}},
    }
) }}

with

raw_events as (
    select count() as events from {{ source('raw', 'product_telemetry_events') }}
    where session_id is not null or anonymous_user_id is not null
),

session_events as (
    select sum(events) as events from {{ ref('int_sessions') }}
)

select *
from ({{ differences('raw_events', 'session_events') }})
where (select count() from ({{ days_touched_since_build() }})) = 0
