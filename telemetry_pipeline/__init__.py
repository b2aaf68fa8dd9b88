"""Self-hosted, privacy-first product telemetry."""
