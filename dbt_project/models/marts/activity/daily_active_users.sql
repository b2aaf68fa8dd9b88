-- One row per scope, organisation (NULL in scope 'all') and day, from its first active day to the last of the history.
{{ config(order_by=['scope', 'org_id_hash', 'day']) }}

with

user_days as (
    select * from {{ ref('int_user_days') }}
),

first_seen as (
    select * from {{ ref('int_first_seen') }}
),

-- A user of two organisations is one user of scope 'all'.
scoped_user_days as (
    select
        scope_key,
        anonymous_user_id,
        day,
        max(is_business_active) as is_business_active
    from user_days
    array join {{ scope_keys() }} as scope_key
    group by scope_key, anonymous_user_id, day
),

days as (
    select
        scope_key,
        day,
        uniqExact(anonymous_user_id) as active_anonymous_users,
        uniqExactIf(anonymous_user_id, is_business_active) as business_active_users,
        uniqExact(org_id_hash) as organisations,
        sum(events) as events,
        sum(business_events) as business_events
    from user_days
    array join {{ scope_keys() }} as scope_key
    group by scope_key, day
),

scoped_first_seen as (
    select
        scope_key,
        anonymous_user_id,
        min(first_seen_day) as first_day
    from first_seen
    array join {{ scope_keys() }} as scope_key
    group by scope_key, anonymous_user_id
),

new_users as (
    select
        scope_key,
        first_day as day,
        count() as new_users
    from scoped_first_seen
    group by scope_key, day
),

-- A user counts in a trailing window of n days from an active day on, for n days or until the
-- next active day, which then takes over. So the distinct users of every window are a running sum
-- of +1 and -1, and no user-day is repeated n times.
activity as (
    select
        scope_key,
        anonymous_user_id,
        day,
        needs_business_event
    from scoped_user_days
    array join if(is_business_active, [false, true], [false]) as needs_business_event
),

next_activity as (
    select
        scope_key,
        day,
        needs_business_event,
        leadInFrame(day, 1, toDate('2149-06-06')) over (
            partition by scope_key, needs_business_event, anonymous_user_id
            order by day
            rows between unbounded preceding and unbounded following
        ) as next_day
    from activity
),

window_changes as (
    select
        scope_key,
        needs_business_event,
        window_days,
        change.1 as change_day,
        change.2 as users
    from next_activity
    array join [7, 30] as window_days
    array join [(day, 1), (least(addDays(day, window_days), next_day), -1)] as change
),

change_days as (
    select
        scope_key,
        change_day as day,
        sumIf(users, window_days = 7 and not needs_business_event) as weekly_change,
        sumIf(users, window_days = 7 and needs_business_event) as weekly_business_change,
        sumIf(users, window_days = 30 and not needs_business_event) as monthly_change,
        sumIf(users, window_days = 30 and needs_business_event) as monthly_business_change
    from window_changes
    group by scope_key, day
),

first_days as (
    select
        scope_key,
        min(day) as first_day
    from days
    group by scope_key
),

-- Days without a single event are rows too: 0 users, while the trailing windows still count.
calendar as (
    select
        scope_key,
        addDays(first_day, number_of_day) as day
    from first_days
    array join range(0, 1 + dateDiff('day', first_day, (select max(day) from days))) as number_of_day
),

windows as (
    select
        calendar.scope_key as scope_key,
        calendar.day as day,
        sum(change_days.weekly_change) over trailing as weekly_active_anonymous_users,
        sum(change_days.weekly_business_change) over trailing as weekly_business_active_users,
        sum(change_days.monthly_change) over trailing as monthly_active_anonymous_users,
        sum(change_days.monthly_business_change) over trailing as monthly_business_active_users
    from calendar
    left join change_days on calendar.scope_key = change_days.scope_key and calendar.day = change_days.day
    window trailing as (partition by calendar.scope_key order by calendar.day)
)

select
    {{ scope_columns('windows.scope_key') }},
    windows.day as day,
    days.active_anonymous_users as active_anonymous_users,
    days.business_active_users as business_active_users,
    new_users.new_users as new_users,
    days.organisations as organisations,
    days.events as events,
    days.business_events as business_events,
    toUInt64(windows.weekly_active_anonymous_users) as weekly_active_anonymous_users,
    toUInt64(windows.weekly_business_active_users) as weekly_business_active_users,
    toUInt64(windows.monthly_active_anonymous_users) as monthly_active_anonymous_users,
    toUInt64(windows.monthly_business_active_users) as monthly_business_active_users,
    days.business_active_users / nullIf(windows.weekly_business_active_users, 0) as dau_wau_ratio,
    days.business_active_users / nullIf(windows.monthly_business_active_users, 0) as stickiness_ratio,
    {{ is_over('windows.day + 1') }} as is_complete
from windows
left join days on windows.scope_key = days.scope_key and windows.day = days.day
left join new_users on windows.scope_key = new_users.scope_key and windows.day = new_users.day
