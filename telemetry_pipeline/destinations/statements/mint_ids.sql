-- A random id for each subject of a due event that has none at this destination. Of two mints at
-- once the first committed wins (privacy.current_destination_ids), so ids are read back before use.
INSERT INTO privacy.destination_ids (destination, subject_kind, subject, destination_id, minted_at)
WITH due AS
(
    SELECT user, organisation
    FROM ops.export_candidates(destination = {destination:String}, names = {names:String})
    WHERE withheld = ''
)
SELECT {destination:String}, subject_kind, subject, lower(hex(randomFixedString(16))), now64(6)
FROM
(
    SELECT DISTINCT 'user' AS subject_kind, user AS subject FROM due WHERE user != 0
    UNION ALL
    SELECT DISTINCT 'organisation' AS subject_kind, organisation AS subject FROM due WHERE organisation != 0
)
WHERE (subject_kind, subject) NOT IN
(
    SELECT toString(subject_kind), subject
    FROM privacy.destination_ids
    WHERE destination = {destination:String}
)
