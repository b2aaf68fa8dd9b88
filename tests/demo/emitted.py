"""What the tests emit with, and what they get back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import sink_oracle

from telemetry_pipeline.demo.emitter import EmissionManifest

NOW = datetime(2026, 11, 24, 15, 30, tzinfo=UTC)
EDGE_KEY = bytes(range(32))


class Emission(NamedTuple):
    """A sink, what emit() said about it, and what the oracle found in it."""

    sink: Path
    manifest: EmissionManifest
    verdicts: sink_oracle.Verdicts
