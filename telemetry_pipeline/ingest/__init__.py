"""Exactly-once ingest: ledger, compiled statements, loader."""
