"""A warehouse and a project for every test that needs them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.identity.keys import create_missing_keys
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import Address, connect, parse_url
from telemetry_pipeline.warehouse.embedded import read_endpoint, read_users
from telemetry_pipeline.warehouse.migrate import migrate

REPOSITORY = Path(__file__).resolve().parent.parent
OURS = ("raw", "ops", "privacy", "staging", "intermediate", "marts")
MARK = "telemetry_test_server"


@pytest.fixture(scope="session")
def warehouse_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """CLICKHOUSE_URL where it is set, else an embedded warehouse of this test session."""
    if url := os.environ.get("CLICKHOUSE_URL"):
        yield parse_url(url)
        return
    folder: Path = tmp_path_factory.mktemp("warehouse")
    process = subprocess.Popen(
        [sys.executable, "-m", "telemetry_pipeline.warehouse.embedded", "--data-dir", folder],
        stdout=subprocess.DEVNULL,
    )
    try:
        ends = time.monotonic() + 60
        while (endpoint := read_endpoint(folder)) is None:
            assert process.poll() is None, "the embedded warehouse ended"
            assert time.monotonic() < ends, "the embedded warehouse did not start"
            time.sleep(0.05)
        login = read_users(folder).writer
        yield Address("http", endpoint.host, endpoint.port, login.name, login.password)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture
def project(
    tmp_path: Path, warehouse_address: Address, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A project of its own: this repository's policy, fresh keys, and the test warehouse."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(REPOSITORY / "telemetry.yaml", root)
    shutil.copytree(REPOSITORY / "catalog", root / "catalog")
    project = Project(root=root, data_dir=root / ".data")
    project.sink_dir.mkdir(parents=True)
    create_missing_keys(project.keys_dir)
    monkeypatch.setenv("TELEMETRY_ROOT", str(root))
    monkeypatch.setenv("TELEMETRY_DATA_DIR", str(project.data_dir))
    monkeypatch.setenv("CLICKHOUSE_URL", warehouse_address.url)
    return project


@pytest.fixture
def client(project: Project) -> Iterator[Client]:
    """A client of a warehouse that has all tables and no rows."""
    with closing(connect(project)) as client:
        empty_warehouse(client)
        migrate(client)
        yield client


def empty_warehouse(client: Client) -> None:
    """Drop what is ours; refuses a server that holds data of ours which no test put there."""
    there = {row[0] for row in client.query("SHOW DATABASES").result_rows}
    if MARK not in there and there.intersection(OURS):
        pytest.exit(
            f"the server at CLICKHOUSE_URL has databases {sorted(there.intersection(OURS))} that no "
            "test made; the tests drop them and so refuse to run there",
            returncode=4,
        )
    client.command(f"CREATE DATABASE IF NOT EXISTS {MARK}")
    for database in OURS:
        client.command(f"DROP DATABASE IF EXISTS {database} SYNC")
