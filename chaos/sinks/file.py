"""Rotated OTLP/JSON files, as the Collector's file exporter leaves them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from chaos.events import Event
from chaos.sinks.wire import otlp_json
from telemetry_pipeline.demo.sink import ACTIVE_NAME, FileSink
from telemetry_pipeline.demo.wire import EdgeIds

#: Rotates every few seconds of a run.
ROTATE_MEGABYTES = 6


class ChaosFile:
    """The emitter's own count is exact: a line that was written stays written."""

    name = "chaos_file"
    has_service = False
    variables: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, folder: Path, edge_ids: EdgeIds) -> None:
        self._folder = folder
        self._edge_ids = edge_ids
        self._opened = ExitStack()
        self._sink = self._opened.enter_context(FileSink(folder, ROTATE_MEGABYTES))
        self._copies = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": "otel_file", "path": str(self._folder / ACTIVE_NAME)}

    def start(self) -> None:
        """Files need no service."""

    def write(self, batch: Sequence[Event]) -> None:
        self._sink.write(otlp_json(batch, self._edge_ids), datetime.now(UTC))

    def copy_back(self, rng: Random) -> None:
        """Restore a rotated file under another name, as from a backup: the same file again."""
        old = sorted(self._folder.glob("events-*.jsonl"))
        if old:
            self._copies += 1
            chosen = rng.choice(old)
            draft = self._folder / "restored.part"
            shutil.copyfile(chosen, draft)
            draft.rename(self._folder / f"events-2020-01-01T00-00-00.{self._copies:03}-size.jsonl")

    def kill(self) -> None:
        raise AssertionError("a file has no service")

    def restart(self) -> None:
        raise AssertionError("a file has no service")

    def deliveries(self) -> Counter[str] | None:
        return None

    def close(self) -> None:
        self._opened.close()
