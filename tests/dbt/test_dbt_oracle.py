"""The main metrics equal a slow, independent computation on a random history in two time zones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from clickhouse_connect.driver.client import Client
from dbt_command import Dbt
from history import FEATURES, event_classes, load, random_history
from oracle import Oracle, Row


@pytest.fixture(scope="module", params=["UTC", "Pacific/Auckland"])
def oracle(request: pytest.FixtureRequest, client: Client, dbt: Dbt) -> Iterator[Oracle]:
    """An oracle whose history is loaded and built in its time zone."""
    history = random_history(1, last_day=datetime.now(UTC).date())
    dbt.time_zone = request.param
    dbt.build_once((dbt.time_zone, 1), lambda: load(client, history), "run")
    yield Oracle(
        history,
        event_classes(),
        FEATURES,
        time_zone=dbt.time_zone,
        today=datetime.now(ZoneInfo(dbt.time_zone)).date(),
    )
    dbt.time_zone = "UTC"


def read_mart(client: Client, mart: str, grain: tuple[str, ...]) -> dict[tuple, Row]:
    """The mart's rows by organisation (None for all) and the rest of its grain."""
    result = client.query(f"SELECT * FROM marts.{mart}")
    rows: dict[tuple, Row] = {}
    for values in result.result_rows:
        row = dict(zip(result.column_names, values, strict=True))
        assert (row.pop("scope") == "all") == (row["org_id_hash"] is None)
        rows[row.pop("org_id_hash"), *(row.pop(column) for column in grain)] = row
    assert len(rows) == len(result.result_rows)
    return rows


def assert_equal(actual: dict[tuple, Row], expected: dict[tuple, Row]) -> None:
    assert actual.keys() == expected.keys()
    different = [
        (key, column, actual[key][column], value)
        for key, row in expected.items()
        for column, value in row.items()
        if not same(actual[key][column], value)
    ]
    assert not different, f"{len(different)} values differ, such as {different[0]}"
    assert all(actual[key].keys() == row.keys() for key, row in expected.items())


def same(actual: object, expected: object) -> bool:
    """Equal; for averages, up to the order of additions."""
    if isinstance(actual, float) and isinstance(expected, int | float):
        return actual == pytest.approx(expected, rel=1e-12)
    return actual == expected


def test_daily_active_users(oracle: Oracle, client: Client) -> None:
    assert_equal(read_mart(client, "daily_active_users", ("day",)), oracle.daily_active_users())


def test_feature_adoption(oracle: Oracle, client: Client) -> None:
    assert_equal(
        read_mart(client, "feature_adoption", ("feature", "week")), oracle.feature_adoption()
    )


def test_feature_retention_weekly(oracle: Oracle, client: Client) -> None:
    grain = ("feature", "retention_kind", "cohort_week", "week_number")
    assert_equal(
        read_mart(client, "feature_retention_weekly", grain), oracle.feature_retention_weekly()
    )


def test_retention_weekly(oracle: Oracle, client: Client) -> None:
    grain = ("activity", "retention_kind", "cohort_week", "week_number")
    assert_equal(read_mart(client, "retention_weekly", grain), oracle.retention_weekly())
