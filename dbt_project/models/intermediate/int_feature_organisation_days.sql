-- One row per organisation, feature and reporting day on which the organisation was seen to have the feature enabled.
-- Enabled: its flag attribute was true on some event, or the feature was used; without a flag, whenever
-- somebody was active.
{{ config(order_by=['org_id_hash', 'feature', 'day']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
    where org_id_hash is not null
),

feature_events as (
    select * from {{ ref('stg_feature_events') }}
),

feature_user_days as (
    select * from {{ ref('int_feature_user_days') }}
    where org_id_hash is not null
),

user_days as (
    select * from {{ ref('int_user_days') }}
    where org_id_hash is not null
),

flags as (
    select groupUniqArray((toString(feature), toString(flag_key))) as flags from feature_events
    where flag_key != ''
),

-- One pass over the events for all flags together.
flag_days as (
    select distinct
        org_id_hash,
        flag.1 as feature,
        {{ reporting_day('occurred_at') }} as day
    from events
    array join (select flags from flags) as flag
    where JSONExtractBool(payload_json, flag.2)
),

used_days as (
    select
        org_id_hash,
        toString(feature) as feature,
        day
    from feature_user_days
),

features_without_flag as (
    select distinct toString(feature) as feature from feature_events
    where flag_key = ''
),

always_enabled_days as (
    select distinct
        user_days.org_id_hash as org_id_hash,
        features_without_flag.feature as feature,
        user_days.day as day
    from user_days
    cross join features_without_flag
),

enabled_days as (
    select * from flag_days
    union all
    select * from used_days
    union all
    select * from always_enabled_days
)

select distinct
    assumeNotNull(org_id_hash) as org_id_hash,
    toLowCardinality(feature) as feature,
    day
from enabled_days
