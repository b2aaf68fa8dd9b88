-- This batch offers to give up its copies of what another holds; the first row for a pair decides.
INSERT INTO ops.raced_copies
SELECT
    {lower_batch_id:UInt64}, {lower_attempt:UInt16}, {higher_batch_id:UInt64}, {higher_attempt:UInt16},
    {batch_id:UInt64}, {decision_id:UUID}, now64(6, 'UTC')
