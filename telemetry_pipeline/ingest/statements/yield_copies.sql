-- This batch offers to give up its copies of what another holds; the first row for a pair decides.
INSERT INTO ops.raced_copies
SELECT
    least({batch_id:UInt64}, {rival_id:UInt64}), greatest({batch_id:UInt64}, {rival_id:UInt64}),
    {batch_id:UInt64}, {decision_id:UUID}, now64(6, 'UTC')
