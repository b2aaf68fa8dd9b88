"""A project and an emptied warehouse that the tests of one module share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from clickhouse_connect.driver.client import Client
from fresh import empty_warehouse, make_project

from telemetry_pipeline.ingest.loader import new_session_id
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import Address, connect
from telemetry_pipeline.warehouse.migrate import migrate


@pytest.fixture(scope="module")
def shared_project(
    tmp_path_factory: pytest.TempPathFactory, warehouse_address: Address
) -> Iterator[Project]:
    """The repository's policy and keys of its own, for a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        yield make_project(tmp_path_factory.mktemp("project"), warehouse_address, patch)


@pytest.fixture(scope="module")
def shared_client(shared_project: Project) -> Iterator[Client]:
    """A client with a session of its own; the warehouse has all tables and no rows."""
    with closing(connect(shared_project, session_id=new_session_id())) as client:
        empty_warehouse(client)
        migrate(client)
        yield client
