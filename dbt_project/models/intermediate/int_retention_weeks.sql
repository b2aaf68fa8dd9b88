-- One row per scope key, activity, kind of retention, cohort week and week number up to the last week of the history.
{{ config(order_by=['scope_key', 'activity_kind', 'activity', 'retention_kind', 'cohort_week', 'week_number']) }}

with

activity_weeks as (
    select * from {{ ref('int_activity_weeks') }}
),

-- A user starts once in the first-time cohort of the first active week, and once in each active
-- week's recurring cohort.
starts as (
    select
        scope_key,
        activity_kind,
        activity,
        active_weeks,
        start.1 as retention_kind,
        start.2 as cohort_week
    from activity_weeks
    array join
        arrayConcat(
            [('first_time', active_weeks[1])],
            arrayMap(week -> ('recurring', week), active_weeks)
        ) as start
),

cohorts as (
    select
        scope_key,
        activity_kind,
        activity,
        retention_kind,
        cohort_week,
        count() as cohort_users
    from starts
    group by scope_key, activity_kind, activity, retention_kind, cohort_week
),

returns as (
    select
        scope_key,
        activity_kind,
        activity,
        retention_kind,
        cohort_week,
        return_week,
        count() as returned_users
    from starts
    array join arrayFilter(week -> week >= cohort_week, active_weeks) as return_week
    group by scope_key, activity_kind, activity, retention_kind, cohort_week, return_week
),

last_week as (
    select max(arrayMax(active_weeks)) as week from activity_weeks
),

-- Weeks in which nobody came back are rows too: 0 of the cohort.
grid as (
    select
        scope_key,
        activity_kind,
        activity,
        retention_kind,
        cohort_week,
        cohort_users,
        toUInt16(number_of_week) as week_number,
        addWeeks(cohort_week, number_of_week) as return_week
    from cohorts
    array join range(0, 1 + dateDiff('week', cohort_week, (select week from last_week))) as number_of_week
)

select
    grid.scope_key as scope_key,
    grid.activity_kind as activity_kind,
    grid.activity as activity,
    toLowCardinality(grid.retention_kind) as retention_kind,
    grid.cohort_week as cohort_week,
    grid.week_number as week_number,
    grid.return_week as return_week,
    grid.cohort_users as cohort_users,
    returns.returned_users as returned_users
from grid
left join returns
    on
        grid.scope_key = returns.scope_key
        and grid.activity_kind = returns.activity_kind
        and grid.activity = returns.activity
        and grid.retention_kind = returns.retention_kind
        and grid.cohort_week = returns.cohort_week
        and grid.return_week = returns.return_week
