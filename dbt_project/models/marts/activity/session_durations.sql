-- One row per scope, organisation (NULL in scope 'all') and day on which a session started or ended.
{{ config(order_by=['scope', 'org_id_hash', 'day']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

sessions as (
    select * from {{ ref('int_sessions') }}
),

session_ends as (
    select
        org_id_hash,
        anonymous_user_id,
        {{ reporting_day('occurred_at') }} as day,
        duration_ms,
        pages_viewed,
        interactions
    from {{ ref('stg_session_ended') }}
),

started as (
    select
        scope_key,
        day,
        uniqExact(session_key) as sessions_started
    from sessions
    array join {{ scope_keys() }} as scope_key
    group by scope_key, day
),

ended as (
    select
        scope_key,
        day,
        count() as sessions_ended,
        uniqExact(anonymous_user_id) as anonymous_users,
        uniqExact(org_id_hash) as organisations,
        quantilesExactInclusive(0.5, 0.75, 0.9, 0.95)(duration_ms) as duration_ms_quantiles,  -- noqa: LT01
        sum(pages_viewed) as pages_viewed,
        sum(interactions) as interactions
    from session_ends
    array join {{ scope_keys() }} as scope_key
    group by scope_key, day
),

days as (
    select
        scope_key,
        day
    from started
    union distinct
    select
        scope_key,
        day
    from ended
)

select
    {{ scope_columns('days.scope_key') }},
    days.day as day,
    started.sessions_started as sessions_started,
    ended.sessions_ended as sessions_ended,
    ended.anonymous_users as anonymous_users,
    ended.organisations as organisations,
    -- A day on which no session ended has no distribution.
    if(sessions_ended = 0, null, ended.duration_ms_quantiles[1]) as duration_ms_p50,
    if(sessions_ended = 0, null, ended.duration_ms_quantiles[2]) as duration_ms_p75,
    if(sessions_ended = 0, null, ended.duration_ms_quantiles[3]) as duration_ms_p90,
    if(sessions_ended = 0, null, ended.duration_ms_quantiles[4]) as duration_ms_p95,
    ended.pages_viewed as pages_viewed,
    ended.interactions as interactions,
    ended.pages_viewed / nullIf(sessions_ended, 0) as avg_pages_viewed,
    ended.interactions / nullIf(sessions_ended, 0) as avg_interactions
from days
left join started on days.scope_key = started.scope_key and days.day = started.day
left join ended on days.scope_key = ended.scope_key and days.day = ended.day
