"""Makes what a test starts from: an emptied warehouse, a project with the repository's policy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.identity.keys import create_missing_keys
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import Address

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = ("raw", "ops", "privacy", "staging", "intermediate", "marts")
MARK = "telemetry_test_server"


def make_project(root: Path, warehouse: Address, patch: pytest.MonkeyPatch) -> Project:
    """A project of its own in `root`, with fresh keys; the environment names it."""
    shutil.copy(REPOSITORY / "telemetry.yaml", root)
    shutil.copytree(REPOSITORY / "catalog", root / "catalog")
    project = Project(root=root, data_dir=root / ".data")
    project.sink_dir.mkdir(parents=True)
    create_missing_keys(project.keys_dir)
    patch.setenv("TELEMETRY_ROOT", str(root))
    patch.setenv("TELEMETRY_DATA_DIR", str(project.data_dir))
    patch.setenv("CLICKHOUSE_URL", warehouse.url)
    return project


def empty_warehouse(client: Client) -> None:
    """Drop what is ours; refuses a server that holds data of ours which no test put there."""
    there = {row[0] for row in client.query("SHOW DATABASES").result_rows}
    strange = sorted(there.intersection(OURS))
    if MARK not in there and strange:
        pytest.exit(
            f"the server at CLICKHOUSE_URL has databases {strange} that no test made; "
            "the tests drop them and so refuse to run there",
            returncode=4,
        )
    client.command(f"CREATE DATABASE IF NOT EXISTS {MARK}")
    for database in OURS:
        client.command(f"DROP DATABASE IF EXISTS {database} SYNC")
