"""Emissions: one that is shared by the tests that only read it, and small ones on request."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sink_oracle
from emitted import EDGE_KEY, NOW, Emission

from telemetry_pipeline.demo.emitter import EmissionManifest, emit


@pytest.fixture(scope="session")
def catalogue() -> sink_oracle.Catalogue:
    return sink_oracle.Catalogue()


@pytest.fixture(scope="session")
def emission(
    tmp_path_factory: pytest.TempPathFactory, catalogue: sink_oracle.Catalogue
) -> Emission:
    """About 20,000 events, rotated every megabyte."""
    sink = tmp_path_factory.mktemp("sink")
    manifest = emit(
        sink,
        "1",
        EDGE_KEY,
        NOW,
        users=300,
        organisations=20,
        events=20_000,
        rotate_megabytes=1,
    )
    return Emission(sink, manifest, sink_oracle.judge(sink, NOW, catalogue))


@pytest.fixture
def emit_small(tmp_path: Path) -> Callable[..., tuple[Path, EmissionManifest]]:
    """Emit about 2,000 events into a folder of this name."""

    def emit_into(folder: str, seed: int = 7) -> tuple[Path, EmissionManifest]:
        sink = tmp_path / folder
        manifest = emit(sink, "1", EDGE_KEY, NOW, seed=seed, users=50, organisations=8, events=2000)
        return sink, manifest

    return emit_into
