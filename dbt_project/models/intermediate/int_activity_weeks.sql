-- One row per scope key, activity and user: the ISO weeks in which the user was active in that sense.
-- Activities: any event, any business event, and each configured feature's adopting events.
{{ config(order_by=['scope_key', 'activity_kind', 'activity', 'anonymous_user_id']) }}

with

user_days as (
    select * from {{ ref('int_user_days') }}
),

feature_user_days as (
    select * from {{ ref('int_feature_user_days') }}
),

activities as (
    select
        org_id_hash,
        anonymous_user_id,
        day,
        'any_event' as activity_kind,
        '' as activity
    from user_days
    union all
    select
        org_id_hash,
        anonymous_user_id,
        day,
        'business_event' as activity_kind,
        '' as activity
    from user_days
    where is_business_active
    union all
    select
        org_id_hash,
        anonymous_user_id,
        day,
        'feature' as activity_kind,
        toString(feature) as activity
    from feature_user_days
)

select
    scope_key,
    toLowCardinality(activity_kind) as activity_kind,
    toLowCardinality(activity) as activity,
    anonymous_user_id,
    arraySort(groupUniqArray({{ iso_week('day') }})) as active_weeks
from activities
array join {{ scope_keys() }} as scope_key
group by scope_key, activity_kind, activity, anonymous_user_id
