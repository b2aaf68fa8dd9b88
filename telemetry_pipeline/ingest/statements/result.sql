-- The end of a slice: one a batch, whoever writes it. A batch that gave up raced copies has fewer
-- rows than landed; they count as duplicates, and by what is there now, because its owner may have
-- died in between. Anything else that is missing is no result. `deadline_ms` 0: none.
INSERT INTO ops.slice_results
WITH
    (SELECT count() FROM raw.product_telemetry_events_storage WHERE batch_id = {batch_id:UInt64}) AS present,
    (SELECT count() FROM ops.raced_copies WHERE yields_batch_id = {batch_id:UInt64}) > 0 AS gave_copies_up,
    toUInt64({accepted:UInt64} - present) AS copies
SELECT
    {source:String}, {partition:String}, {epoch:UInt32}, {start_offset:UInt64}, {end_offset:UInt64},
    {attempt:UInt16}, {batch_id:UInt64}, {received:UInt64}, {accepted:UInt64} - copies, {duplicates:UInt64} + copies,
    mapFromArrays({rejected_reasons:Array(String)}, {rejected_records:Array(UInt64)}),
    mapFromArrays({dropped_reasons:Array(String)}, {dropped_records:Array(UInt64)}),
    {unknown_attributes:UInt64},
    now64(6, 'UTC')
WHERE {batch_id:UInt64} NOT IN (SELECT batch_id FROM ops.slice_results WHERE source = {source:String})
    AND throwIf(present > {accepted:UInt64} OR present < {accepted:UInt64} AND NOT gave_copies_up,
                'rows of the batch are missing') = 0
    AND throwIf({deadline_ms:Int64} != 0 AND toUnixTimestamp64Milli(now64(3)) > {deadline_ms:Int64},
                'slice deadline passed') = 0
