-- Week 0 is the week of the start event, which is the return event: everybody is back.
select
    scope,
    org_id_hash,
    activity,
    retention_kind,
    cohort_week,
    week_number,
    cohort_users,
    returned_users
from {{ ref('retention_weekly') }}
where (week_number = 0 and returned_users != cohort_users) or returned_users > cohort_users
