-- Which batch of a pair gives up its copies.
SELECT yields_batch_id
FROM ops.raced_copies
WHERE (lower_batch_id, lower_attempt, higher_batch_id, higher_attempt) =
    ({lower_batch_id:UInt64}, {lower_attempt:UInt16}, {higher_batch_id:UInt64}, {higher_attempt:UInt16})
ORDER BY decided_at, decision_id
LIMIT 1
