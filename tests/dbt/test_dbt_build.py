"""dbt build from nothing, on a history, and once more: what passes, what is there, what changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from clickhouse_connect.driver.client import Client
from dbt_command import Dbt
from history import Event, land, load, random_history


@pytest.fixture
def built(client: Client, dbt: Dbt) -> Dbt:
    """A random history, built with all data and unit tests passing."""
    history = random_history(1, last_day=datetime.now(UTC).date())
    dbt.build_once(("UTC", 1), lambda: load(client, history), "build")
    return dbt


def tables(client: Client, database: str) -> list[str]:
    found = client.query(
        "SELECT name FROM system.tables WHERE database = {database:String} ORDER BY name",
        parameters={"database": database},
    )
    return [name for (name,) in found.result_rows]


def fingerprints(client: Client, database: str) -> dict[str, tuple[int, int]]:
    """Rows and an order-independent hash of every table and view."""
    return {
        name: client.query(
            f"SELECT count(), groupBitXor(cityHash64(toString(tuple(*)))) FROM {database}.{name}"
        ).result_rows[0]
        for name in tables(client, database)
    }


def test_a_warehouse_without_events_builds(client: Client, dbt: Dbt) -> None:
    dbt.build_once(
        "nothing",
        lambda: load(client, [], features=()),
        "build",
        "--exclude-resource-type",
        "unit_test",
    )


def test_every_mart_has_rows(built: Dbt, client: Client) -> None:
    rows = {name: count for name, (count, _) in fingerprints(client, "marts").items()}
    assert len(rows) >= 11
    assert all(rows.values()), rows


def test_a_rebuild_without_new_events_changes_nothing(built: Dbt, client: Client) -> None:
    before = {name: fingerprints(client, name) for name in ("intermediate", "marts")}
    built.succeed("run", "--full-refresh")
    assert {name: fingerprints(client, name) for name in ("intermediate", "marts")} == before


@pytest.fixture
def late_event(client: Client) -> Iterator[Event]:
    """A page view of yesterday by somebody new, for a test to land; gone again afterwards."""
    yield Event(
        event_id=UUID(int=7),
        name="page_viewed",
        at=datetime.now(UTC) - timedelta(days=1),
        org=101,
        user=999,
        session=999,
        route="/new",
    )
    for table in ("raw.product_telemetry_events_storage", "ops.touches"):
        client.command(f"ALTER TABLE {table} DELETE WHERE batch_id = 2 SETTINGS mutations_sync = 2")


COMPARISONS_WITH_RAW = ("test", "--select", "path:tests/reference", "path:tests/consistency")


def test_an_event_that_the_marts_miss_is_noticed(
    built: Dbt, client: Client, late_event: Event
) -> None:
    land(client, [late_event], batch_id=2, touch=False)
    assert built.run(*COMPARISONS_WITH_RAW).returncode == 1
    assert built.failures() == {
        "reference__daily_active_users",
        "reference__top_routes",
        "daily_active_users__organisations_equal_a_recount",
        "int_user_days__events_equal_raw",
        "int_sessions__no_event_is_in_two",
    }


def test_an_event_that_arrives_after_the_build_began_is_no_failure(
    built: Dbt, client: Client, late_event: Event
) -> None:
    land(client, [late_event], batch_id=2)
    built.succeed(*COMPARISONS_WITH_RAW)
