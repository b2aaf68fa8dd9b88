-- One row per scope and organisation (NULL in scope 'all'): how many users did something with the product yesterday.
-- A view: yesterday is a matter of when it is asked.
{# The folder's settings are a table's. #}
{{ config(materialized='view', settings={}) }}

with

days as (
    select
        *,
        {{ reporting_today() }} - 1 as yesterday
    from {{ ref('daily_active_users') }}
)

select
    days.scope as scope,
    days.org_id_hash as org_id_hash,
    days.yesterday as yesterday,
    sumIf(days.active_anonymous_users, days.day = days.yesterday) as active_anonymous_users,
    sumIf(days.business_active_users, days.day = days.yesterday) as business_active_users,
    sumIf(days.new_users, days.day = days.yesterday) as new_users,
    sumIf(days.events, days.day = days.yesterday) as events,
    sumIf(days.business_events, days.day = days.yesterday) as business_events,
    sumIf(days.business_active_users, days.day = days.yesterday - 7) as business_active_users_a_week_before
from days
group by scope, org_id_hash, yesterday
