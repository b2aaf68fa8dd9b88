-- Lists what a purge will remove. Letters that a replay holds stay until it is finished.
INSERT INTO ops.dead_letter_purge_items
SELECT {purge_id:UUID}, batch_id, attempt, source_position, {requested_by:String}, now64(6, 'UTC')
FROM {{matching}}
WHERE state != 'replaying'
