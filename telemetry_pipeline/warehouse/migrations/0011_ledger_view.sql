-- A batch has one result, under the attempt whose rows it counts: an attempt that only wrote the
-- result of an earlier one is not open, and a slice that was given up has a result, too.
CREATE OR REPLACE VIEW ops.ingest_ledger AS
SELECT
    intents.source AS source,
    intents.partition AS partition,
    intents.epoch AS epoch,
    intents.start_offset AS start_offset,
    intents.end_offset AS end_offset,
    intents.attempt AS attempt,
    intents.batch_id AS batch_id,
    intents.run_id AS run_id,
    intents.slice_time AS slice_time,
    intents.deadline AS deadline,
    intents.contract_hash AS contract_hash,
    intents.pseudonym_key_id AS pseudonym_key_id,
    multiIf(
        results.batch_id = 0 AND latest.attempt != intents.attempt, 'superseded',
        results.batch_id = 0, 'open',
        results.attempt != intents.attempt, 'superseded',
        (intents.source, intents.partition, intents.epoch, intents.start_offset, intents.end_offset) IN
            (SELECT source, partition, epoch, start_offset, end_offset FROM ops.source_losses),
            'lost',
        'settled'
    ) AS state,
    if(results.attempt = intents.attempt, results.received, 0) AS received,
    if(results.attempt = intents.attempt, results.accepted, 0) AS accepted,
    if(results.attempt = intents.attempt, results.duplicates, 0) AS duplicates,
    if(results.attempt = intents.attempt, results.rejected, map()) AS rejected,
    if(results.attempt = intents.attempt, results.dropped, map()) AS dropped,
    intents.claimed_at AS claimed_at,
    results.finished_at AS finished_at
FROM ops.slice_intents AS intents
LEFT JOIN ops.slice_results AS results ON intents.batch_id = results.batch_id
LEFT JOIN (SELECT batch_id, max(attempt) AS attempt FROM ops.slice_intents GROUP BY batch_id) AS latest
    ON intents.batch_id = latest.batch_id;
