"""A warehouse with events in it, and a local Amplitude server, for the tests of the exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from exporting import API_KEY, Receiver, Warehouse, connect
from fresh import empty_warehouse

from telemetry_pipeline.demo.amplitude_server import Faults, ServerSettings, running
from telemetry_pipeline.warehouse.client import Address
from telemetry_pipeline.warehouse.migrate import migrate


@pytest.fixture(scope="session")
def migrated(warehouse_address: Address) -> Address:
    with connect(warehouse_address) as client:
        empty_warehouse(client)
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
