-- Makes a frozen replay count; written once all its items are there.
INSERT INTO ops.dead_letter_replays
SELECT {replay_id:UUID}, {filters:String}, count(), {requested_by:String}, now64(6, 'UTC')
FROM ops.dead_letter_replay_items
WHERE replay_id = {replay_id:UUID}
HAVING count() > 0
