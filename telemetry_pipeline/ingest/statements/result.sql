-- The end of a slice; its deduplication token is (batch, attempt).
INSERT INTO ops.slice_results
SELECT
    {source:String}, {partition:String}, {epoch:UInt32}, {start_offset:UInt64}, {end_offset:UInt64},
    {attempt:UInt16}, {batch_id:UInt64}, {received:UInt64}, {accepted:UInt64}, {duplicates:UInt64},
    mapFromArrays({rejected_reasons:Array(String)}, {rejected_records:Array(UInt64)}),
    mapFromArrays({dropped_reasons:Array(String)}, {dropped_records:Array(UInt64)}),
    {unknown_attributes:UInt64},
    now64(6, 'UTC')
