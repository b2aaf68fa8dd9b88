-- One row per organisation (NULL: none was given), user, feature and reporting day on which the user used the feature.
{{ config(order_by=['org_id_hash', 'feature', 'day', 'anonymous_user_id']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
    where anonymous_user_id is not null
),

feature_events as (
    select * from {{ ref('stg_feature_events') }}
)

select
    events.org_id_hash as org_id_hash,
    assumeNotNull(events.anonymous_user_id) as anonymous_user_id,
    feature_events.feature as feature,
    {{ reporting_day('events.occurred_at') }} as day,
    count() as events
from events
inner join feature_events on events.name = feature_events.event_name
group by org_id_hash, anonymous_user_id, feature, day
