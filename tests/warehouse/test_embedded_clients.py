"""The real client library against the embedded warehouse."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from embedded_server import Server

MakeTable = Callable[[str], str]
COLUMNS = "(n UInt32, s String, at DateTime64(3, 'UTC'), tags Array(String), v Nullable(Float64))"


@pytest.fixture(params=[True, False, "lz4", "zstd", "gzip"], ids=lambda value: f"compress={value}")
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = server.client(compress=request.param)
    yield client
    client.close()


@pytest.fixture
def plain(server: Server) -> Iterator[Client]:
    client = server.client(autogenerate_session_id=False)
    yield client
    client.close()


class TestClickHouseConnect:
    def test_rows_come_back_as_they_went(self, client: Client, table: MakeTable) -> None:
        target = table(f"{COLUMNS} ENGINE = MergeTree ORDER BY n")
        at = dt.datetime(2026, 1, 2, 3, 4, 5, 678000)  # UTC: the library returns naive times
        rows = [[1, "it's\t\\", at, ["a", "b"], None], [2, "", at, [], 1.5]]
        summary = client.insert(target, rows, column_names=["n", "s", "at", "tags", "v"])
        assert summary.written_rows == 2
        found = client.query(f"SELECT * FROM {target} ORDER BY n")
        assert [list(row) for row in found.result_rows] == rows
        assert found.column_names == ("n", "s", "at", "tags", "v")

    def test_data_frames_come_back_as_they_went(self, client: Client, table: MakeTable) -> None:
        target = table("(n Int64, s String) ENGINE = MergeTree ORDER BY n")
        frame = pd.DataFrame({"n": range(1000), "s": [f"row {n}" for n in range(1000)]})
        client.insert_df(target, frame)
        found = client.query_df(f"SELECT * FROM {target} ORDER BY n")
        assert found["n"].tolist() == frame["n"].tolist()
        assert found["s"].tolist() == frame["s"].tolist()

    def test_large_results_stream(self, client: Client) -> None:
        total = 0
        with client.query_row_block_stream("SELECT number FROM numbers(1000000)") as stream:
            for block in stream:
                total += len(block)
        assert total == 1_000_000

    def test_large_results_come_whole(self, client: Client) -> None:
        assert client.query("SELECT number FROM numbers(400000)").row_count == 400_000


class TestCommandsAndParameters:
    def test_commands_return_single_values(self, plain: Client) -> None:
        assert plain.command("SELECT 1") == 1
        assert plain.command("EXISTS DATABASE system") == 1
        assert plain.command("SELECT timezone()") == "UTC"

    def test_parameters_are_bound_by_the_server(self, plain: Client) -> None:
        parameters = {"s": "it's\n\\x", "n": [1, 2], "d": dt.date(2026, 1, 2), "none": None}
        sql = "SELECT {s:String}, {n:Array(UInt8)}, {d:Date}, {none:Nullable(String)}"
        row = plain.query(sql, parameters=parameters).first_row
        assert [row[0], list(row[1]), row[2], row[3]] == [
            "it's\n\\x",
            [1, 2],
            dt.date(2026, 1, 2),
            None,
        ]

    def test_long_parameters_go_as_a_form(self, server: Server) -> None:
        client = server.client(form_encode_query_params=True)
        row = client.query("SELECT {s:String}", parameters={"s": "long" * 50_000}).first_row
        assert row[0] == "long" * 50_000

    def test_settings_are_sent(self, plain: Client) -> None:
        found = plain.query("SELECT getSetting('max_threads')", settings={"max_threads": 3})
        assert found.first_row == (3,)

    def test_query_ids_and_summaries_come_back(self, plain: Client) -> None:
        found = plain.query("SELECT number FROM numbers(5)", settings={"query_id": "connect-1"})
        assert found.query_id == "connect-1"
        assert found.summary["read_rows"] == "5"

    def test_errors_carry_code_and_name(self, plain: Client) -> None:
        with pytest.raises(DatabaseError, match=r"code: 60.*UNKNOWN_TABLE"):
            plain.query("SELECT * FROM system.no_such")

    def test_an_error_within_a_stream_is_raised(self, plain: Client) -> None:
        sql = "SELECT throwIf(number = 3000000), number FROM numbers(4000000)"
        with (
            pytest.raises(Exception, match="395"),
            plain.query_row_block_stream(sql) as stream,
        ):
            for _ in stream:
                pass

    def test_columns_of_an_empty_result_are_known(self, plain: Client) -> None:
        found = plain.query("SELECT 1 AS a, 'x' AS b LIMIT 0")
        assert found.column_names == ("a", "b")


class TestRawInserts:
    def test_from_bytes_a_generator_and_a_whole_statement(
        self, plain: Client, table: MakeTable
    ) -> None:
        target = table("(n UInt32) ENGINE = MergeTree ORDER BY n")
        plain.raw_insert(target, ["n"], b"1\n2\n", fmt="TSV")
        plain.raw_insert(
            target, ["n"], (b'{"n": %d}\n' % n for n in range(3, 6)), fmt="JSONEachRow"
        )
        statement = f"INSERT INTO {target} SELECT n FROM input('n UInt32') FORMAT TSV\n"
        plain.raw_insert(None, insert_block=statement.encode() + b"6\n7\n")
        assert plain.query(f"SELECT n FROM {target} ORDER BY n").result_columns == [
            [1, 2, 3, 4, 5, 6, 7]
        ]

    def test_through_input_with_parameters_and_a_token(
        self, plain: Client, table: MakeTable
    ) -> None:
        target = table(
            "(s String) ENGINE = MergeTree ORDER BY s "
            "SETTINGS non_replicated_deduplication_window = 10"
        )
        statement = (
            f"INSERT INTO {target} SELECT concat(x, {{tail:String}}) FROM input('x String') "
            "FORMAT LineAsString"
        )
        for _ in range(2):
            plain.command(
                statement,
                parameters={"tail": "!"},
                data=b"a\nb\n",
                settings={"insert_deduplication_token": "t1"},
            )
        assert plain.command(f"SELECT groupArray(s) FROM (SELECT * FROM {target} ORDER BY s)") == (
            "['a!','b!']"
        )

    def test_compressed(self, server: Server, plain: Client, table: MakeTable) -> None:
        import zstandard

        target = table("(n UInt32) ENGINE = Memory")
        plain.raw_insert(
            target, ["n"], zstandard.compress(b"1\n2\n"), fmt="TSV", compression="zstd"
        )
        assert plain.command(f"SELECT count() FROM {target}") == 2


class TestManyClients:
    def test_write_and_read_at_once_without_losing_a_row(
        self, server: Server, table: MakeTable
    ) -> None:
        target = table("(worker UInt8, n UInt32) ENGINE = MergeTree ORDER BY (worker, n)")

        def write(worker: int) -> None:
            client = server.client()
            for start in range(0, 200, 20):
                client.insert(target, [[worker, n] for n in range(start, start + 20)])
                client.query(f"SELECT count() FROM {target}")
            client.close()

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(6)))
        assert server.sql(f"SELECT count(), uniqExact(worker, n) FROM {target}") == "1200\t1200"

    def test_the_reader_works_with_it_too(self, server: Server, table: MakeTable) -> None:
        target = table("(n UInt32) ENGINE = Memory")
        client = server.client(server.users.reader, settings={"max_execution_time": 5})
        assert client.query(f"SELECT count() FROM {target}").first_row == (0,)
        with pytest.raises(DatabaseError, match=r"READONLY|ACCESS_DENIED"):
            client.insert(target, [[1]], column_names=["n"])
