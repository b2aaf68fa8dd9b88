"""Native answers for clients that name a protocol revision, such as clickhouse-go."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from embedded_server import Server, eventually
from log_records import common, line, record
from services.collector import running_collector

from telemetry_pipeline.warehouse.embedded.native_revision import with_revision

INFO = bytes.fromhex("010002ffffffff00")


def native(http: httpx.Client, sql: str, revision: str | None) -> httpx.Response:
    asked = {} if revision is None else {"client_protocol_version": revision}
    return http.post("/", params={"default_format": "Native", **asked}, content=sql)


def test_a_block_gets_its_info_and_each_column_a_flag(http: httpx.Client) -> None:
    answer = native(http, "SELECT 'é' AS s, 258::UInt16 AS n", "54460")

    assert answer.content == (
        INFO
        + b"\x02\x01"
        + (b"\x01s" + b"\x06String" + b"\x00" + b"\x02\xc3\xa9")
        + (b"\x01n" + b"\x06UInt16" + b"\x00" + b"\x02\x01")
    )


@pytest.mark.parametrize("revision", [None, "0", "54405", "54453"])
def test_an_older_revision_is_answered_as_before(http: httpx.Client, revision: str | None) -> None:
    assert native(http, "SELECT 1::UInt8 AS n", revision).content == b"\x01\x01\x01n\x05UInt8\x01"


def test_only_native_has_revisions(http: httpx.Client) -> None:
    assert native(http, "SELECT 1 FORMAT TSV", "54460").content == b"1\n"


@pytest.mark.parametrize(
    "column",
    [
        "toString(number * 37)",
        "number::Int8",
        "number::UInt256",
        "number::Float32",
        "if(number % 3 = 0, NULL, toString(number))",
        "if(number % 3 = 0, NULL, number)",
        "toFixedString(leftPad(toString(number), 9, 'x'), 9)",
        "toDate(number % 9000)",
        "toDate32(number % 9000)",
        "toDateTime(number, 'UTC')",
        "toDateTime64(number, 6, 'UTC')",
        "generateUUIDv4(number)",
        "number % 2 = 0",
        "CAST(number % 2, 'Enum8(\\'a\\' = 0, \\'b\\' = 1)')",
        "toIPv4(number)",
        "toIPv6(toIPv4(number))",
    ],
)
def test_no_byte_of_a_column_moves_over_many_blocks(http: httpx.Client, column: str) -> None:
    """A column whose width were wrong would put the marks of the last column elsewhere."""
    sql = (
        f"SELECT {column} AS c, number AS last FROM numbers(3000) ORDER BY number "
        "SETTINGS max_block_size = 1000, max_threads = 1"
    )
    old, new = native(http, sql, None).content, native(http, sql, "54460").content

    blocks = new.count(INFO + b"\x02")
    assert blocks >= 1
    assert len(new) == len(old) + blocks * (len(INFO) + 2)
    marked = b"\x04last\x06UInt64"
    assert new.count(marked + b"\x00") == old.count(marked) == blocks
    if "generateUUID" not in column:
        assert with_revision(old) == new


@pytest.mark.parametrize("kind", ["Array(UInt8)", "LowCardinality(String)", "Map(String, String)"])
def test_a_type_whose_length_is_not_known_is_refused_by_name(http: httpx.Client, kind: str) -> None:
    answer = native(http, f"SELECT defaultValueOfTypeName('{kind}') AS c", "54460")

    assert answer.status_code == 501
    assert f"column of type {kind}" in answer.text


@pytest.mark.parametrize("revision", ["", "x", "-1", "1e5", "9" * 10])
def test_what_is_no_revision_is_refused(http: httpx.Client, revision: str) -> None:
    answer = native(http, "SELECT 1", revision)
    assert (answer.status_code, "client_protocol_version" in answer.text) == (400, True)


@pytest.mark.needs("otelcol/otelcol")
def test_the_collectors_clickhouse_exporter_makes_its_tables_and_writes(
    server: Server, tmp_path: Path
) -> None:
    exporter = {
        "endpoint": server.endpoint.url,
        "username": server.users.writer.name,
        "password": server.users.writer.password,
        "database": "from_the_collector",
        "compress": "none",
        "async_insert": False,
    }
    event_id = "00000000-0000-4000-8000-000000000001"
    event = record("session.start", common(event__id=event_id), 1_700_000_000_000)
    with running_collector(tmp_path, {"clickhouse": exporter}) as collector:
        sent = httpx.post(
            collector.logs_url,
            content=line(event),
            headers={"content-type": "application/json"},
            trust_env=False,
        )
        assert sent.status_code == 200, sent.text
        rows = "SELECT EventName, LogAttributes['event.id'] FROM from_the_collector.otel_logs"
        eventually(lambda: server.sql(rows) != "")

    assert server.sql(rows) == f"session.start\t{event_id}"
    server.sql("DROP DATABASE from_the_collector SYNC")
