-- Of two attempts that landed copies of one event at the same moment, the one that gives its copies
-- up: whoever sees the other's first. The first row for a pair decides, as with claims.
CREATE TABLE IF NOT EXISTS ops.raced_copies
(
    lower_batch_id UInt64,
    lower_attempt UInt16,
    higher_batch_id UInt64,
    higher_attempt UInt16,
    yields_batch_id UInt64,
    decision_id UUID,
    decided_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (lower_batch_id, higher_batch_id, lower_attempt, higher_attempt, decided_at)
SETTINGS non_replicated_deduplication_window = 10000;
