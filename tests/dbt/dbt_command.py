"""The dbt command on the project, run as a person would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fresh import REPOSITORY

from telemetry_pipeline.warehouse.client import Address

DBT_PROJECT = REPOSITORY / "dbt_project"


@dataclass
class Dbt:
    """The dbt command on the project, with everything it writes in a folder of the test session."""

    address: Address
    folder: Path
    time_zone: str = "UTC"
    holds: object = None  # what the warehouse was last built from

    def build_once(self, source: object, prepare: Callable[[], None], *arguments: str) -> None:
        """Prepares and runs dbt unless the warehouse already holds what comes of this source."""
        if self.holds == source:
            return
        self.holds = None
        prepare()
        self.succeed(*arguments)
        self.holds = source

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs dbt and returns its exit code and output."""
        return subprocess.run(
            [Path(sys.executable).with_name("dbt"), *arguments, "--profiles-dir", DBT_PROJECT],
            cwd=DBT_PROJECT,
            env=os.environ
            | {
                "DBT_CLICKHOUSE_HOST": self.address.host,
                "DBT_CLICKHOUSE_PORT": str(self.address.port),
                "DBT_CLICKHOUSE_USER": self.address.user,
                "DBT_CLICKHOUSE_PASSWORD": self.address.password,
                "DBT_CLICKHOUSE_SECURE": str(self.address.scheme == "https").lower(),
                "DBT_TARGET_PATH": str(self.folder / "target"),
                "DBT_LOG_PATH": str(self.folder / "logs"),
                "DBT_USE_COLORS": "false",
                "DBT_REPORTING_TIMEZONE": self.time_zone,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def succeed(self, *arguments: str) -> None:
        """Runs dbt; fails the test with dbt's own words."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

    @property
    def manifest(self) -> dict:
        """The manifest of the last run."""
        return json.loads((self.folder / "target" / "manifest.json").read_text())

    def failures(self) -> set[str]:
        """Names of what did not pass in the last run."""
        results = json.loads((self.folder / "target" / "run_results.json").read_text())
        return {
            result["unique_id"].split(".")[2]
            for result in results["results"]
            if result["status"] not in ("success", "pass", "no-op")
        }
