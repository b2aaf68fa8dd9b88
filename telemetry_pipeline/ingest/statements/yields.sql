-- Which batch of a pair gives up its copies.
SELECT yields_batch_id
FROM ops.raced_copies
WHERE lower_batch_id = least({batch_id:UInt64}, {rival_id:UInt64})
    AND higher_batch_id = greatest({batch_id:UInt64}, {rival_id:UInt64})
ORDER BY decided_at, decision_id
LIMIT 1
