"""A warehouse with events in it, and a local Amplitude server, for the tests of the exports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from exporting import API_KEY, Receiver, Warehouse, connect

from telemetry_pipeline.demo.amplitude_server import Faults, ServerSettings, running
from telemetry_pipeline.warehouse.client import Address, parse_url
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


@pytest.fixture(scope="session")
def migrated(warehouse_address: Address) -> Address:
    with connect(warehouse_address) as client:
        migrate(client)
    return warehouse_address


@pytest.fixture
def warehouse(migrated: Address) -> Iterator[Warehouse]:
    """A migrated warehouse without events."""
    with connect(migrated) as client:
        warehouse = Warehouse(client)
        warehouse.empty()
        yield warehouse


@pytest.fixture
def amplitude_server(tmp_path: Path) -> Callable[..., AbstractContextManager[Receiver]]:
    """Starts a local Amplitude server; other keyword arguments than these two are of Faults."""

    @contextmanager
    def start(
        *, events_per_second: int | None = None, throttle_window: float = 1.0, **faults: object
    ) -> Iterator[Receiver]:
        settings = ServerSettings(
            state_dir=tmp_path / "amplitude",
            api_key=API_KEY,
            events_per_second=events_per_second,
            throttle_window=throttle_window,
            faults=Faults(**faults),  # type: ignore[arg-type]
        )
        with running(settings) as url, closing(Receiver(url)) as receiver:
            yield receiver

    return start
