"""The embedded warehouse as a process that is killed and started again on the same folder."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import Any

from clickhouse_connect.driver.client import Client

from chaos import limits
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import connect
from telemetry_pipeline.warehouse.embedded import read_endpoint
from telemetry_pipeline.warehouse.migrate import migrate

_START_SECONDS = 60
_TARGETS = "'product_telemetry_events_storage', 'dead_letters', 'slice_counts', 'touches'"


class Warehouse:
    """Clients find its address through the file that it leaves in its folder."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._folder = project.warehouse_dir
        self._log = project.data_dir / "warehouse.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "telemetry_pipeline.warehouse.embedded"]
        with self._lock, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--data-dir", self._folder],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            ends = time.monotonic() + _START_SECONDS
            while (found := read_endpoint(self._folder)) is None or found.pid != self._process.pid:
                if self._process.poll() is not None or time.monotonic() > ends:
                    raise SystemExit(f"chaos: the warehouse did not start; see {self._log}")
                time.sleep(0.02)

    def make_tables(self) -> None:
        with closing(connect(self._project)) as client:
            migrate(client)
            folders = client.query(
                f"SELECT arrayJoin(data_paths) FROM system.tables WHERE name IN ({_TARGETS}) "
                "AND database IN ('raw', 'ops')"
            ).result_rows
        listed = self._project.data_dir / limits.PART_FOLDERS
        listed.write_text("\n".join(str(self._folder / row[0]) for row in folders))

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def client(self) -> Client:
        return connect(self._project)

    def rows(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of a statement; for the driver, while the warehouse is alive."""
        with closing(self.client()) as client:
            return [tuple(row) for row in client.query(statement, parameters).result_rows]
