-- One row per organisation, user, feature and ISO week in which the user could have used the feature.
-- Could: the user was active (a business event) in a week in which the organisation had the feature enabled.
{{ config(order_by=['org_id_hash', 'feature', 'week', 'anonymous_user_id']) }}

with

business_days as (
    select * from {{ ref('int_user_days') }}
    where is_business_active and org_id_hash is not null
),

feature_organisation_days as (
    select * from {{ ref('int_feature_organisation_days') }}
),

feature_user_days as (
    select * from {{ ref('int_feature_user_days') }}
    where org_id_hash is not null
),

active_weeks as (
    select distinct
        assumeNotNull(org_id_hash) as org_id_hash,
        anonymous_user_id,
        {{ iso_week('day') }} as week
    from business_days
),

enabled_weeks as (
    select distinct
        org_id_hash,
        feature,
        {{ iso_week('day') }} as week
    from feature_organisation_days
),

used_weeks as (
    select
        assumeNotNull(org_id_hash) as org_id_hash,
        anonymous_user_id,
        feature,
        {{ iso_week('day') }} as week,
        arraySort(groupUniqArray(day)) as used_days
    from feature_user_days
    group by org_id_hash, anonymous_user_id, feature, week
)

select
    active_weeks.org_id_hash as org_id_hash,
    active_weeks.anonymous_user_id as anonymous_user_id,
    enabled_weeks.feature as feature,
    active_weeks.week as week,
    -- Empty for who could have used the feature but did not: an unmatched join gives the default.
    used_weeks.used_days as used_days
from active_weeks
inner join enabled_weeks
    on active_weeks.org_id_hash = enabled_weeks.org_id_hash and active_weeks.week = enabled_weeks.week
left join used_weeks
    on
        active_weeks.org_id_hash = used_weeks.org_id_hash
        and active_weeks.anonymous_user_id = used_weeks.anonymous_user_id
        and active_weeks.week = used_weeks.week
        and enabled_weeks.feature = used_weeks.feature
