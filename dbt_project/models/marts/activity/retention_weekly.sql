-- One row per scope, organisation (NULL in scope 'all'), activity, kind of retention, cohort week and week number.
{{ config(order_by=['scope', 'org_id_hash', 'activity', 'retention_kind', 'cohort_week', 'week_number']) }}

with

retention_weeks as (
    select * from {{ ref('int_retention_weeks') }}
    where activity_kind in ('any_event', 'business_event')
)

select
    {{ scope_columns() }},
    activity_kind as activity,
    retention_kind,
    cohort_week,
    week_number,
    return_week,
    cohort_users,
    returned_users,
    returned_users / cohort_users as retention_rate,
    {{ is_over('addWeeks(return_week, 1)') }} as is_complete
from retention_weeks
