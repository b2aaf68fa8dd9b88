-- The due events of one part of {parts}, with the ids their subjects have at the destination.
-- Two stored copies of an event (a race at ingest, not yet removed) are one event here.
SELECT
    due.event_id AS event_id,
    due.name AS name,
    due.schema_version AS schema_version,
    due.route_pattern AS route_pattern,
    due.payload_json AS payload_json,
    toUnixTimestamp64Milli(due.occurred_at) AS occurred_ms,
    due.batch_id AS batch_id,
    due.user AS user,
    due.organisation AS organisation,
    due.session AS session,
    users.destination_id AS user_id,
    organisations.destination_id AS organisation_id,
    due.sent_insert_id AS sent_insert_id,
    due.sent_device_id AS sent_device_id,
    due.sent_user_id AS sent_user_id,
    due.sent_organisation_id AS sent_organisation_id,
    toUnixTimestamp64Milli(due.sent_occurred_at) AS sent_occurred_ms,
    toUnixTimestamp64Micro(due.in_doubt_since) AS in_doubt_since_us
FROM ops.export_candidates(destination = {destination:String}, names = {names:String}) AS due
LEFT JOIN
(
    SELECT subject, destination_id
    FROM privacy.current_destination_ids
    WHERE destination = {destination:String} AND subject_kind = 'user'
) AS users ON due.user = users.subject
LEFT JOIN
(
    SELECT subject, destination_id
    FROM privacy.current_destination_ids
    WHERE destination = {destination:String} AND subject_kind = 'organisation'
) AS organisations ON due.organisation = organisations.subject
WHERE due.withheld = '' AND cityHash64(due.event_id) % {parts:UInt32} = {part:UInt32}
ORDER BY occurred_ms, event_id, batch_id
LIMIT 1 BY event_id
