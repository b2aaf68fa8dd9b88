"""The read-only user: reads every table, sends harmless settings, and can do nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from embedded_server import Server


@pytest.fixture
def reader(server: Server) -> Iterator[httpx.Client]:
    with server.http(server.users.reader) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def readable(server: Server) -> Iterator[None]:
    server.sql("CREATE TABLE readable (n UInt8) ENGINE = MergeTree ORDER BY n")
    server.sql("INSERT INTO readable VALUES (1), (2)")
    server.sql("CREATE VIEW readable_view AS SELECT n FROM readable")
    yield
    server.sql("DROP VIEW readable_view")
    server.sql("DROP TABLE readable")


@pytest.mark.parametrize(
    ("sql", "result"),
    [
        ("SELECT count() FROM readable", "2"),
        ("SELECT sum(n) FROM readable_view", "3"),
        ("WITH 1 AS x SELECT x", "1"),
        ("EXISTS readable", "1"),
        ("SELECT 'file(' FROM readable LIMIT 1", "file("),
        ("SELECT n AS processes FROM readable ORDER BY n LIMIT 1", "1"),
        ("SELECT count() FROM numbers(3)", "3"),
        ("SELECT count() > 0 FROM system.tables", "1"),
        ("SELECT value FROM system.settings WHERE name = 'readonly'", "2"),
    ],
)
def test_the_reader_may_read(reader: httpx.Client, sql: str, result: str) -> None:
    assert reader.post("/", content=sql).text == result + "\n"


@pytest.mark.parametrize("name", ["max_execution_time", "max_threads", "max_result_rows"])
def test_the_reader_may_send_harmless_settings(reader: httpx.Client, name: str) -> None:
    content = f"SELECT getSetting('{name}') = 9"
    assert reader.post("/", params={name: "9"}, content=content).text == "1\n"


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO readable VALUES (3)",
        "INSERT INTO readable SELECT 3",
        "INSERT INTO readable SELECT n FROM input('n UInt8') FORMAT TSV\n3\n",
        "WITH 1 AS x INSERT INTO readable SELECT x",
        "ALTER TABLE readable DELETE WHERE 1",
        "DELETE FROM readable WHERE 1",
        "TRUNCATE TABLE readable",
        "DROP TABLE readable",
        "RENAME TABLE readable TO gone",
        "CREATE TABLE made (n UInt8) ENGINE = Memory",
        "CREATE TEMPORARY TABLE made (n UInt8)",
        "CREATE DATABASE made",
        "OPTIMIZE TABLE readable",
        "KILL QUERY WHERE 1",
        "SYSTEM STOP MERGES",
        "BACKUP TABLE readable TO File('x')",
        "EXECUTE AS default SELECT 1",
    ],
)
def test_the_reader_cannot_write(reader: httpx.Client, server: Server, sql: str) -> None:
    answer = reader.post("/", content=sql)
    assert answer.headers.get("X-ClickHouse-Exception-Code") in ("164", "497"), answer.text
    assert server.sql("SELECT count(), sum(n) FROM readable") == "2\t3"


@pytest.mark.parametrize(
    "sql",
    [
        "SET readonly = 0",
        "SET ROLE owner",
        "SET ROLE ALL",
        "SET DEFAULT ROLE owner TO default",
        "SELECT 1 SETTINGS readonly = 0",
        "SET allow_ddl = 1, readonly = 0",
    ],
)
def test_the_reader_cannot_take_rights(reader: httpx.Client, server: Server, sql: str) -> None:
    for session in ({}, {"session_id": "reader-escape"}):
        answer = reader.post("/", params=session, content=sql)
        assert answer.headers.get("X-ClickHouse-Exception-Code") in ("164", "497"), answer.text
        tried = reader.post("/", params=session, content="SELECT * FROM file('x', 'TSV', 'a Int8')")
        assert tried.headers["X-ClickHouse-Exception-Code"] == "497"


def test_the_reader_cannot_raise_readonly_in_the_url(reader: httpx.Client) -> None:
    for value in ("0", "1"):
        answer = reader.post(
            "/", params={"readonly": value}, content="INSERT INTO readable SELECT 3"
        )
        assert answer.status_code != 200


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM file('/etc/hostname', 'LineAsString', 'x String')",
        "SELECT file('/etc/hostname')",
        "SELECT `file`('/etc/hostname')",
        "SELECT FILE /* */ ('/etc/hostname')",
        "SELECT \"f\\x69le\"('/etc/hostname')",
        "SELECT * FROM `/etc/hostname`",
        "DESCRIBE TABLE `/etc/hostname`",
        "DESCRIBE file('/etc/hostname')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString', 'x String')",
        "SELECT * FROM s3('https://bucket.s3.amazonaws.com/a', 'LineAsString', 'x String')",
        "SELECT * FROM remote('127.0.0.1', 'system', 'one')",
        "SELECT * FROM mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
        "SELECT * FROM sqlite('/x.db', 't')",
        "SELECT * FROM executable('ls', 'TSV', 'x String')",
        "SELECT * FROM Python(os)",
    ],
)
def test_the_reader_reaches_nothing_outside_the_tables(reader: httpx.Client, sql: str) -> None:
    answer = reader.post("/", content=sql)
    assert answer.headers.get("X-ClickHouse-Exception-Code") in ("497", "36"), answer.text


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT query FROM system.processes", {}),
        ("SELECT query FROM SYSTEM . `processes`", {}),
        ("SELECT query FROM processes", {"database": "system"}),
        (
            "SELECT query FROM {d:Identifier}.{t:Identifier}",
            {"param_d": "system", "param_t": "processes"},
        ),
        ("SELECT query FROM system.{t:Identifier}", {"param_t": "proc\\x65sses"}),
        ("SELECT * FROM merge('system', 'processes')", {}),
        ("SHOW PROCESSLIST", {}),
        ("USE system", {}),
        ("SET param_t = 'system.processes'", {}),
        ("SELECT command FROM system.mutations", {}),
    ],
)
def test_the_reader_does_not_see_the_statements_of_others(
    reader: httpx.Client, sql: str, parameters: dict[str, str]
) -> None:
    answer = reader.post("/", params=parameters, content=sql)
    assert answer.headers.get("X-ClickHouse-Exception-Code") == "497", answer.text


def test_the_writer_may_do_all_of_it(server: Server) -> None:
    assert server.sql("SELECT count() > 0 FROM system.processes") == "1"
    assert (
        server.sql("SELECT count() FROM file('/etc/hostname', 'LineAsString', 'x String')") == "1"
    )
