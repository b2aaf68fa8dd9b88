-- One row per organisation (NULL: none was given) and user ever seen.
{{ config(order_by=['org_id_hash', 'anonymous_user_id']) }}

with

user_days as (
    select * from {{ ref('int_user_days') }}
)

select
    org_id_hash,
    anonymous_user_id,
    min(day) as first_seen_day,
    minOrNullIf(day, is_business_active) as first_business_day
from user_days
group by org_id_hash, anonymous_user_id
