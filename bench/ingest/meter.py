"""One stopwatch for every path: from after start-up until the warehouse has settled."""

from __future__ import annotations

import time
from collections.abc import Mapping

from bench.ingest.figures import Cost
from bench.ingest.processes import cpu_seconds
from bench.ingest.warehouse import Warehouse


class Meter:
    """Made at the moment the work begins. `processes`: pids by name, beside the warehouse's."""

    def __init__(self, warehouse: Warehouse, processes: Mapping[str, int]) -> None:
        self._warehouse = warehouse
        self._processes = processes
        self._before = {name: cpu_seconds(pid) for name, pid in processes.items()}
        self._warehouse_before = warehouse.cpu()
        self._began = time.monotonic()

    def elapsed(self) -> float:
        """Seconds of wall time since the work began."""
        return time.monotonic() - self._began

    def finish(
        self,
        *,
        records: int,
        rows: int,
        seconds: float,
        startup_cpu_s: float,
        ended: Mapping[str, float] | None = None,
        notes: Mapping[str, object] | None = None,
    ) -> Cost:
        """Let the warehouse settle, then add up.

        `seconds`: how long the work took. `startup_cpu_s`: what was used before, warehouse left
        out (it is known here). `ended`: CPU by name of processes that have ended and counted
        themselves.
        """
        settled = self._warehouse.settle()
        warehouse_cpu = self._warehouse.cpu() - self._warehouse_before
        parts = {
            name: cpu_seconds(pid) - self._before[name] for name, pid in self._processes.items()
        } | dict(ended or {})
        return Cost(
            records=records,
            seconds=seconds,
            cpu_s=warehouse_cpu + sum(parts.values()),
            warehouse_cpu_s=warehouse_cpu,
            settle_cpu_s=settled,
            startup_cpu_s=self._warehouse_before + startup_cpu_s,
            warehouse_rss_mb=self._warehouse.peak_rss_mb(),
            parts=parts,
            rows=rows,
            notes=notes or {},
        )
