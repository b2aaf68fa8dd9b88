-- Ranges of sources that can never be ingested.
SELECT count() AS losses, sum(end_offset - start_offset) AS bytes FROM ops.source_losses
