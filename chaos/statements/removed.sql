-- Second copies that ingest removed after their batches had counted them as accepted.
SELECT sum(ops.ledger_adjustments.records) AS records
FROM ops.ledger_adjustments
WHERE kind = 'duplicates_removed'
