-- Claims one slice for one attempt. The deduplication token is the claim's key, so of several
-- writers at once one row lands; every time stands on the warehouse's clock.
INSERT INTO ops.slice_intents
SELECT
    {source:String}, {partition:String}, {epoch:UInt32}, {start_offset:UInt64}, {end_offset:UInt64},
    {attempt:UInt16}, {batch_id:UInt64}, {claim_id:UUID}, {run_id:String},
    now64(3, 'UTC'),
    now64(3, 'UTC') + toIntervalSecond({deadline_seconds:UInt32}),
    {contract_hash:String}, {statement_hash:String}, {pseudonym_key_id:String},
    maxIf(epoch, kind = 'erasure'), maxIf(epoch, kind = 'consent'), maxIf(epoch, kind = 'edge_link'),
    {bytes_hash:String}, {tail_sha256:String},
    now64(6, 'UTC')
FROM privacy.epoch_changes
