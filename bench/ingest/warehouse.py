"""A fresh embedded warehouse for each path, and what it cost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from clickhouse_connect.driver.client import Client

from bench.ingest.processes import cpu_seconds, peak_rss_mb, stop
from telemetry_pipeline.identity.keys import create_missing_keys
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import Address, connect, find_address
from telemetry_pipeline.warehouse.embedded import read_endpoint
from telemetry_pipeline.warehouse.migrate import migrate

REPOSITORY = Path(__file__).resolve().parents[2]
#: Merges go on after the last row; this long at most they are waited for, on every side.
SETTLE_SECONDS = 20
_QUIET_LOOKS = 3
_LOOK_SECONDS = 0.5


class BenchError(Exception):
    """The benchmark cannot go on; the text says why."""


@dataclass
class Warehouse:
    """A project of its own (policy, keys, data) and the process that serves its warehouse."""

    project: Project
    pid: int
    client: Client
    startup_cpu_s: float

    @property
    def address(self) -> Address:
        return find_address(self.project)

    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    def peak_rss_mb(self) -> float:
        return peak_rss_mb(self.pid)

    def count(self, table: str) -> int:
        """The rows of `table`, 0 while it does not exist."""
        database, name = table.split(".")
        rows = self.client.query(
            "SELECT ifNull(sum(total_rows), 0) FROM system.tables "
            "WHERE database = {database:String} AND name = {name:String}",
            parameters={"database": database, "name": name},
        ).result_rows
        return int(rows[0][0])

    def settle(self) -> float:
        """Wait until no merge has run for a second and a half, at most SETTLE_SECONDS; returns the
        CPU seconds that passed in the warehouse meanwhile."""
        before = self.cpu()
        ends = time.monotonic() + SETTLE_SECONDS
        quiet = 0
        while quiet < _QUIET_LOOKS and time.monotonic() < ends:
            time.sleep(_LOOK_SECONDS)
            merges = self.client.query("SELECT count() FROM system.merges").result_rows[0][0]
            quiet = 0 if merges else quiet + 1
        return self.cpu() - before


@contextmanager
def fresh_warehouse(folder: Path, config: str) -> Iterator[Warehouse]:
    """An empty warehouse with every migration applied, in `folder`, which is removed at the end.

    `config` is the text of the project's telemetry.yaml.
    """
    shutil.rmtree(folder, ignore_errors=True)
    project = Project(root=folder / "project", data_dir=folder / "data")
    project.root.mkdir(parents=True)
    shutil.copytree(REPOSITORY / "catalog", project.catalog_dir)
    project.config_file.write_text(config)
    create_missing_keys(project.keys_dir)
    with (folder / "warehouse.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "telemetry_pipeline.warehouse.embedded",
                "--data-dir",
                str(project.warehouse_dir),
            ],
            cwd=REPOSITORY,
            env={name: text for name, text in os.environ.items() if name != "CLICKHOUSE_URL"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(process, project, folder / "warehouse.log")
        with closing(connect(project)) as client:
            migrate(client)
            yield Warehouse(project, process.pid, client, cpu_seconds(process.pid))
    finally:
        stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], project: Project, log: Path) -> None:
    ends = time.monotonic() + 60
    while read_endpoint(project.warehouse_dir) is None:
        if process.poll() is not None or time.monotonic() > ends:
            raise BenchError(f"the warehouse did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)
