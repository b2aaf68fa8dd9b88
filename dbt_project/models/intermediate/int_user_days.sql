-- One row per organisation (NULL: none was given), user and reporting day with at least one event.
{{ config(order_by=['org_id_hash', 'day', 'anonymous_user_id']) }}

-- depends_on: {{ ref('int_day_versions') }}
with

events as (
    select * from {{ source('raw', 'product_telemetry_events') }}
    where anonymous_user_id is not null
),

event_classes as (
    select * from {{ ref('stg_event_classes') }}
),

feature_events as (
    select * from {{ ref('stg_feature_events') }}
),

-- What one event of the name adds to each feature. At most one row per name, so that the join
-- below repeats no event.
features_of_event as (
    select
        event_name,
        mapFromArrays(
            groupUniqArray(toString(feature)), arrayWithConstant(uniqExact(feature), toUInt64(1))
        ) as adopted
    from feature_events
    group by event_name
)

select
    events.org_id_hash as org_id_hash,
    assumeNotNull(events.anonymous_user_id) as anonymous_user_id,
    {{ reporting_day('events.occurred_at') }} as day,
    count() as events,
    countIf(event_classes.event_class = 'business') as business_events,
    countIf(event_classes.event_class = 'technical') as technical_events,
    toBool(business_events > 0) as is_business_active,
    sumMap(features_of_event.adopted) as feature_events
from events
left join event_classes on events.name = event_classes.event_name
left join features_of_event on events.name = features_of_event.event_name
group by org_id_hash, anonymous_user_id, day
