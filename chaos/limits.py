"""Ingest's limits, shortened so that a hundred recoveries fit into minutes.

Only times and sizes change: a claim's deadline, how long an insert may run, how much a slice
holds. Each name must still be there, or the run is refused: a limit that is not shortened would
make recovery wait for minutes, and one that is gone may have been replaced by another.
"""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

from telemetry_pipeline.errors import TelemetryError

DEADLINE_SECONDS = 3
INSERT_SECONDS = 4
CLOCK_MARGIN_SECONDS = 1
#: After this a claim may be taken over: what a pause must outlast.
GRACE_SECONDS = DEADLINE_SECONDS + INSERT_SECONDS + CLOCK_MARGIN_SECONDS
SLICE_BYTES = 1_500_000

#: In the project's data folder: the folders of the insert's targets, one a line.
PART_FOLDERS = "chaos_part_folders"

_TIMES = (
    ("telemetry_pipeline.ingest.ledger", "DEADLINE_SECONDS", DEADLINE_SECONDS),
    ("telemetry_pipeline.ingest.ledger", "INSERT_SECONDS", INSERT_SECONDS),
    ("telemetry_pipeline.ingest.loader", "INSERT_SECONDS", INSERT_SECONDS),
    ("telemetry_pipeline.ingest.ledger", "CLOCK_MARGIN_SECONDS", CLOCK_MARGIN_SECONDS),
)
#: (module, class, keyword arguments of its constructor)
_SIZES: tuple[tuple[str, str, dict[str, int]], ...] = (
    ("telemetry_pipeline.ingest.run", "OtelFileSource", {"slice_bytes": SLICE_BYTES}),
    ("telemetry_pipeline.ingest.run", "KafkaSource", {"slice_bytes": SLICE_BYTES // 2}),
    ("telemetry_pipeline.ingest.run", "RedisStreamSource", {"slice_bytes": SLICE_BYTES // 2}),
)


def apply() -> None:
    """Shorten the limits in this process. Raises TelemetryError when one is not there."""
    for module_name, name, value in _TIMES:
        module = importlib.import_module(module_name)
        _require(module, name)
        setattr(module, name, value)
    for module_name, name, arguments in _SIZES:
        module = importlib.import_module(module_name)
        _require(module, name)
        made = getattr(module, name)
        for argument in arguments:
            if argument not in inspect.signature(made).parameters:
                raise TelemetryError(f"chaos: {name} has no {argument}; mend chaos/limits.py")
        setattr(module, name, partial(made, **arguments))


def _require(module: Any, name: str) -> None:
    if not hasattr(module, name):
        raise TelemetryError(f"chaos: {module.__name__} has no {name}; mend chaos/limits.py")
