-- How far each epoch of a source was ever seen to reach: without it, a file that disappears before it
-- was read to its end would be a loss that nobody knows of.
CREATE TABLE IF NOT EXISTS ops.source_ends
(
    source LowCardinality(String),
    partition String,
    epoch UInt32,
    seen_end SimpleAggregateFunction(max, UInt64)
)
ENGINE = AggregatingMergeTree
ORDER BY (source, partition, epoch);
