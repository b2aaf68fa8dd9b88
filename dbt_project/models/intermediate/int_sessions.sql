-- One row per session and organisation (NULL: none was given) it was seen in.
{{ config(order_by=['org_id_hash', 'day', 'session_key']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
),

client_sessions as (
    select
        org_id_hash,
        toString(assumeNotNull(session_id)) as session_key,
        'client' as identified_by,
        min(anonymous_user_id) as anonymous_user_id,
        min(occurred_at) as started_at,
        max(occurred_at) as ended_at,
        count() as events,
        countIf(name = 'page_viewed') as pages_viewed
    from events
    where session_id is not null
    group by org_id_hash, session_id
),

events_without_session as (
    select
        org_id_hash,
        anonymous_user_id,
        name,
        occurred_at,
        lagInFrame(occurred_at) over (
            partition by org_id_hash, anonymous_user_id
            order by occurred_at
            rows between unbounded preceding and current row
        ) as previous_at
    from events
    where session_id is null and anonymous_user_id is not null
),

-- The first event of a user has the epoch before it, which is 30 minutes ago and more.
numbered_events as (
    select
        org_id_hash,
        anonymous_user_id,
        name,
        occurred_at,
        sum(occurred_at >= previous_at + interval 30 minute) over (
            partition by org_id_hash, anonymous_user_id
            order by occurred_at
        ) as session_number
    from events_without_session
),

inferred_sessions as (
    select
        org_id_hash,
        concat(toString(assumeNotNull(anonymous_user_id)), '@', toString(toUnixTimestamp64Milli(started_at)))
            as session_key,
        'inactivity' as identified_by,
        anonymous_user_id,
        min(occurred_at) as started_at,
        max(occurred_at) as ended_at,
        count() as events,
        countIf(name = 'page_viewed') as pages_viewed
    from numbered_events
    group by org_id_hash, anonymous_user_id, session_number
),

sessions as (
    select * from client_sessions
    union all
    select * from inferred_sessions
)

select
    org_id_hash,
    session_key,
    toLowCardinality(identified_by) as identified_by,
    anonymous_user_id,
    {{ reporting_day('started_at') }} as day,
    started_at,
    ended_at,
    events,
    pages_viewed
from sessions
