"""What ingest costs beside the exporters people use, and beside the engine's own floor."""
