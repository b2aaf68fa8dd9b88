"""A warehouse without events, and dbt, for the tests of the marts."""

from __future__ import annotations

from collections.abc import Iterator

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client
from dbt_command import Dbt
from fresh import empty_warehouse

from telemetry_pipeline.warehouse.client import Address
from telemetry_pipeline.warehouse.migrate import migrate


@pytest.fixture(scope="session")
def client(warehouse_address: Address) -> Iterator[Client]:
    """A client of a warehouse that has all tables and no rows, for all tests of this folder."""
    with clickhouse_connect.get_client(
        interface=warehouse_address.scheme,
        host=warehouse_address.host,
        port=warehouse_address.port,
        username=warehouse_address.user,
        password=warehouse_address.password,
        autogenerate_session_id=False,
    ) as client:
        empty_warehouse(client)
        migrate(client)
        yield client


@pytest.fixture(scope="session")
def dbt(
    warehouse_address: Address, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> Dbt:
    return Dbt(warehouse_address, tmp_path_factory.mktemp("dbt"))
