-- One row per scope, organisation (NULL in scope 'all'), feature and ISO week; '(any)' is any configured feature.
{{ config(order_by=['scope', 'org_id_hash', 'feature', 'week']) }}

with

eligible_user_weeks as (
    select * from {{ ref('int_eligible_user_weeks') }}
),

feature_user_days as (
    select * from {{ ref('int_feature_user_days') }}
    where org_id_hash is not null
),

first_seen as (
    select * from {{ ref('int_first_seen') }}
    where org_id_hash is not null
),

user_weeks as (
    select
        scope_key,
        row_feature,
        week,
        anonymous_user_id,
        groupUniqArrayArray(used_days) as days_with_use,
        groupUniqArrayIf(feature, notEmpty(used_days)) as features_with_use,
        groupUniqArray(org_id_hash) as user_organisations
    from eligible_user_weeks
    array join [toUInt64(0), org_id_hash] as scope_key
    array join [toString(feature), '(any)'] as row_feature
    group by scope_key, row_feature, week, anonymous_user_id
),

first_seen_days as (
    select
        scope_key,
        anonymous_user_id,
        min(first_seen_day) as first_day
    from first_seen
    array join {{ scope_keys() }} as scope_key
    group by scope_key, anonymous_user_id
),

first_use_days as (
    select
        scope_key,
        row_feature,
        anonymous_user_id,
        min(day) as first_use_day
    from feature_user_days
    array join {{ scope_keys() }} as scope_key
    array join [toString(feature), '(any)'] as row_feature
    group by scope_key, row_feature, anonymous_user_id
),

first_uses as (
    select
        first_use_days.scope_key as scope_key,
        first_use_days.row_feature as row_feature,
        {{ iso_week('first_use_days.first_use_day') }} as week,
        first_use_days.anonymous_user_id as anonymous_user_id,
        dateDiff('day', first_seen_days.first_day, first_use_days.first_use_day) as days_to_adopt
    from first_use_days
    inner join first_seen_days
        on
            first_use_days.scope_key = first_seen_days.scope_key
            and first_use_days.anonymous_user_id = first_seen_days.anonymous_user_id
),

judged_user_weeks as (
    select
        user_weeks.scope_key as scope_key,
        user_weeks.row_feature as row_feature,
        user_weeks.week as week,
        user_weeks.user_organisations as user_organisations,
        notEmpty(user_weeks.days_with_use) as is_adopter,
        -- Without a match the week is the type's default, which no week of a user is.
        is_adopter and first_uses.week = user_weeks.week as is_new_adopter,
        first_uses.days_to_adopt as days_to_adopt,
        length(user_weeks.days_with_use) as active_days,
        -- The '(any)' row of the same user and week has all features; the longest list is its.
        max(length(user_weeks.features_with_use)) over (
            partition by user_weeks.scope_key, user_weeks.week, user_weeks.anonymous_user_id
        ) as features_used
    from user_weeks
    left join first_uses
        on
            user_weeks.scope_key = first_uses.scope_key
            and user_weeks.row_feature = first_uses.row_feature
            and user_weeks.week = first_uses.week
            and user_weeks.anonymous_user_id = first_uses.anonymous_user_id
),

feature_weeks as (
    select
        scope_key,
        row_feature,
        week,
        count() as eligible_users,
        countIf(is_adopter) as adopters,
        countIf(is_new_adopter) as new_adopters,
        uniqExactArray(user_organisations) as organisations,
        quantileExactInclusiveOrNullIf(0.5)(days_to_adopt, is_new_adopter)  -- noqa: LT01
            as median_days_to_adopt,
        avgOrNullIf(active_days, is_adopter) as active_days_per_adopter,
        avgOrNullIf(features_used, is_adopter) as features_per_adopter
    from judged_user_weeks
    group by scope_key, row_feature, week
)

select
    {{ scope_columns() }},
    row_feature as feature,
    week,
    eligible_users,
    adopters,
    adopters / eligible_users as adoption_rate,
    new_adopters,
    organisations,
    median_days_to_adopt,
    active_days_per_adopter,
    features_per_adopter,
    {{ is_over('addWeeks(week, 1)') }} as is_complete
from feature_weeks
