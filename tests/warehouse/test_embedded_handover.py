"""Data that a client puts into the spool itself: read once, removed, and nothing but the spool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from embedded_server import Server

from telemetry_pipeline.warehouse.client import insert_data
from telemetry_pipeline.warehouse.embedded.handover import HEADER, handed_over

MakeTable = Callable[[str], str]


@pytest.fixture
def spool(server: Server) -> Path:
    return server.data_dir / "tmp"


@pytest.fixture
def target(table: MakeTable) -> str:
    return table("(x String) ENGINE = MergeTree ORDER BY x")


def insert(http: httpx.Client, target: str, name: str, data: bytes = b"") -> httpx.Response:
    head = f"INSERT INTO {target} SELECT x FROM input('x String') FORMAT LineAsString\n".encode()
    return http.post("/", content=head + data, headers={HEADER: name})


def test_data_in_the_spool_is_inserted_and_removed(
    server: Server, target: str, spool: Path
) -> None:
    sql = f"INSERT INTO {target} SELECT x FROM input('x String') FORMAT LineAsString\n"
    with server.client() as client:
        insert_data(client, sql, b"a\nb\n", {"async_insert": 0}, spool)

    assert server.sql(f"SELECT x FROM {target} ORDER BY x FORMAT TSVRaw").split() == ["a", "b"]
    assert list(spool.iterdir()) == []


def test_a_failed_insert_leaves_no_file(server: Server, target: str, spool: Path) -> None:
    sql = f"INSERT INTO {target} SELECT nothing FROM input('x String') FORMAT LineAsString\n"
    with server.client() as client, pytest.raises(Exception, match="nothing"):
        insert_data(client, sql, b"a\n", {}, spool)

    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("name", ["../users.json", "/etc/passwd", "", "0" * 32, f"{'G' * 32}.rows"])
def test_only_a_name_of_the_spool_is_taken(
    http: httpx.Client, server: Server, target: str, name: str
) -> None:
    answer = insert(http, target, name)

    assert answer.status_code == 400
    assert server.sql(f"SELECT count() FROM {target}").strip() == "0"


def test_a_file_is_taken_once(http: httpx.Client, server: Server, target: str, spool: Path) -> None:
    with handed_over(spool, b"a\n") as headers:
        assert insert(http, target, headers[HEADER]).status_code == 200
        assert "the file is not there" in insert(http, target, headers[HEADER]).text
    assert server.sql(f"SELECT count() FROM {target}").strip() == "1"


def test_data_in_both_places_is_refused(http: httpx.Client, target: str, spool: Path) -> None:
    with handed_over(spool, b"a\n") as headers:
        assert insert(http, target, headers[HEADER], b"b\n").status_code == 400
    assert list(spool.iterdir()) == []
