"""One embedded warehouse that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from embedded_server import Server, end_leftovers, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that many tests share; each uses tables of its own."""
    with running_server(tmp_path_factory.mktemp("warehouse") / "data") as running:
        yield running
    end_leftovers()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """The writer's HTTP client on the shared server."""
    with server.http() as client:
        yield client


@pytest.fixture
def table(server: Server, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Makes a table with the given columns and engine; returns its name and drops it afterwards."""
    made: list[str] = []

    def make(definition: str) -> str:
        name = f"t_{abs(hash(request.node.nodeid))}_{len(made)}"
        server.sql(f"CREATE TABLE {name} {definition}")
        made.append(name)
        return name

    yield make
    for name in made:
        server.sql(f"DROP TABLE IF EXISTS {name} SYNC")
