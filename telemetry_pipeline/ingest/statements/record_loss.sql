-- A range that can never be ingested, once. `deadline_ms` 0: none.
INSERT INTO ops.source_losses
SELECT
    {source:String}, {partition:String}, {epoch:UInt32}, {start:UInt64}, {end:UInt64}, {reason:String},
    now64(6, 'UTC')
WHERE ({source:String}, {partition:String}, {epoch:UInt32}, {start:UInt64}, {end:UInt64}, {reason:String}) NOT IN
    (
        SELECT source, partition, epoch, start_offset, end_offset, toString(reason)
        FROM ops.source_losses
        WHERE source = {source:String} AND partition = {partition:String}
    )
    AND throwIf({deadline_ms:Int64} != 0 AND toUnixTimestamp64Milli(now64(3)) > {deadline_ms:Int64},
                'slice deadline passed') = 0
