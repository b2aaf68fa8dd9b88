-- One row per organisation (NULL: none was given), user, feature and reporting day on which the user used the feature.
{{ config(order_by=['org_id_hash', 'feature', 'day', 'anonymous_user_id']) }}

with

user_days as (
    select * from {{ ref('int_user_days') }}
)

select
    org_id_hash,
    anonymous_user_id,
    toLowCardinality(used.1) as feature,
    day,
    used.2 as events
from user_days
array join feature_events as used
