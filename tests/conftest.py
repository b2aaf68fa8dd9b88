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
from fresh import empty_warehouse, make_project
from services.process import SERVICES

from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import Address, connect, parse_url
from telemetry_pipeline.warehouse.embedded import read_endpoint, read_users
from telemetry_pipeline.warehouse.migrate import migrate


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
def project(tmp_path: Path, warehouse_address: Address, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project of its own: this repository's policy, fresh keys, and the test warehouse."""
    root = tmp_path / "project"
    root.mkdir()
    return make_project(root, warehouse_address, monkeypatch)


@pytest.fixture
def client(project: Project) -> Iterator[Client]:
    """A client of a warehouse that has all tables and no rows."""
    with closing(connect(project)) as client:
        empty_warehouse(client)
        migrate(client)
        yield client


# -- suites that need more than Python -----------------------------------------------------

NEEDS = {
    "chromium": "apt-get install chromium (or any package of it that puts it on PATH)",
    "java": "apt-get install default-jre-headless (17 or newer)",
    "redis-server": "apt-get install redis-server",
    "kafka/libs": "make services (needs Java and Maven)",
    "otelcol/otelcol": "make services (needs Go)",
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(part): the suite needs this program on PATH, or this file of .cache/services",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave a test out when its part is missing; with REQUIRE_SERVICES=all that is a failure."""
    for mark in item.iter_markers("needs"):
        part = mark.args[0]
        if not ((SERVICES / part).exists() if "/" in part else shutil.which(part)):
            if os.environ.get("REQUIRE_SERVICES") == "all":
                pytest.fail(f"{part} is missing, and REQUIRE_SERVICES=all leaves nothing out")
            pytest.skip(f"needs {part}: {NEEDS[part]}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which suites were left out and how to get them."""
    skipped = {
        (Path(report.nodeid.split("::")[0]).as_posix(), str(report.longrepr[2]))
        for report in terminalreporter.stats.get("skipped", [])
    }
    for suite, reason in sorted(skipped):
        terminalreporter.write_line(f"left out: {suite}: {reason.removeprefix('Skipped: ')}")
