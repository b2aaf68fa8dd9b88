-- Counts a purge in the ledger, once, before anything is removed.
INSERT INTO ops.ledger_adjustments (batch_id, kind, records, reason, adjusted_at)
SELECT batch_id, 'letters_purged', count(), concat('purge ', {purge_id:String}), now64(6, 'UTC')
FROM ops.dead_letter_purge_items
WHERE purge_id = toUUID({purge_id:String})
    AND concat('purge ', {purge_id:String}) NOT IN
        (SELECT reason FROM ops.ledger_adjustments WHERE kind = 'letters_purged')
GROUP BY batch_id
