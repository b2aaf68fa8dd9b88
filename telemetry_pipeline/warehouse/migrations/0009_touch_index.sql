-- Ingest looks touches up by batch, in a table that is sorted by day and only grows.
ALTER TABLE ops.touches ADD INDEX IF NOT EXISTS by_batch batch_id TYPE bloom_filter(0.01) GRANULARITY 4;
ALTER TABLE ops.touches MATERIALIZE INDEX by_batch;
