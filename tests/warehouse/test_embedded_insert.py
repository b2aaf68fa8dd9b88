"""Inserting over HTTP: what is acknowledged is in the table, whole, in every form of request."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import lz4.frame
import pytest
import zstandard
from embedded_server import Server, eventually, running_server

MakeTable = Callable[[str], str]
ROWS = b"a\nb\nc\n"


def spooled(server: Server) -> list[Path]:
    return list((server.data_dir / "tmp").iterdir())


class TestInputNeverLosesRows:
    @pytest.fixture
    def target(self, table: MakeTable) -> str:
        return table("(x String) ENGINE = MergeTree ORDER BY x")

    def stored(self, server: Server, target: str) -> list[str]:
        return server.sql(f"SELECT x FROM {target} ORDER BY x FORMAT TSVRaw").split()

    def test_with_the_query_in_the_url_and_the_data_in_the_body(
        self, server: Server, target: str
    ) -> None:
        server.sql(f"INSERT INTO {target} SELECT x FROM input('x String') FORMAT TSV", ROWS)
        assert self.stored(server, target) == ["a", "b", "c"]

    def test_with_query_and_data_in_the_body(self, server: Server, target: str) -> None:
        head = f"INSERT INTO {target} SELECT x FROM input('x String') FORMAT LineAsString\n"
        server.sql(head + ROWS.decode())
        assert self.stored(server, target) == ["a", "b", "c"]

    def test_with_the_statement_split_between_url_and_body(
        self, server: Server, target: str
    ) -> None:
        rest = b"SELECT x FROM input('x String') FORMAT TSV\n" + ROWS
        server.sql(f"INSERT INTO {target}", rest)
        assert self.stored(server, target) == ["a", "b", "c"]

    def test_with_the_query_in_the_url_ending_in_a_line_break(
        self, server: Server, target: str
    ) -> None:
        server.sql(f"INSERT INTO {target} SELECT x FROM input('x String') FORMAT TSV\n", ROWS)
        assert self.stored(server, target) == ["a", "b", "c"]

    @pytest.mark.parametrize(
        "call", ["INPUT( 'x String' )", "input\n('x String')", "`input`/**/('x String')"]
    )
    def test_however_input_is_written(self, server: Server, target: str, call: str) -> None:
        server.sql(f"INSERT INTO {target} SELECT x FROM {call} FORMAT TSV", ROWS)
        assert self.stored(server, target) == ["a", "b", "c"]

    def test_with_quotes_in_the_structure(self, server: Server, target: str) -> None:
        structure = r"x Enum8(\'a\' = 1, \'it\\\'s\' = 2)"
        statement = f"INSERT INTO {target} SELECT x::String FROM input('{structure}') FORMAT TSVRaw"
        server.sql(statement, b"a\nit's\n")
        assert self.stored(server, target) == ["a", "it's"]

    def test_with_input_in_a_literal_and_a_comment_too(self, server: Server, target: str) -> None:
        server.sql(
            f"INSERT INTO {target} SELECT concat(x, 'input(''y String'')') /* input( */ "
            "FROM input('x String') -- FROM input('z String') FORMAT CSV\n FORMAT TSV",
            b"a\n",
        )
        assert self.stored(server, target) == ["ainput('y", "String')"]

    def test_with_a_view_between(self, server: Server, target: str, table: MakeTable) -> None:
        landing = table("(x String) ENGINE = Null")
        server.sql(f"CREATE MATERIALIZED VIEW {landing}_v TO {target} AS SELECT x FROM {landing}")
        server.sql(f"INSERT INTO {landing} SELECT x FROM input('x String') FORMAT TSV", ROWS)
        server.sql(f"DROP VIEW {landing}_v")
        assert self.stored(server, target) == ["a", "b", "c"]

    def test_with_an_empty_body(self, server: Server, target: str) -> None:
        server.sql(f"INSERT INTO {target} SELECT x FROM input('x String') FORMAT TSV", b"")
        assert self.stored(server, target) == []

    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO {t} SELECT x FROM input('x String')",
            "INSERT INTO {t} SELECT x FROM input() FORMAT TSV",
            "INSERT INTO {t} SELECT x FROM input('x String') i, input('x String') FORMAT TSV",
            "INSERT INTO {t} SELECT x FROM view(SELECT * FROM remote('x', input('x String')))",
        ],
    )
    def test_or_says_so(
        self, http: httpx.Client, server: Server, target: str, statement: str
    ) -> None:
        answer = http.post("/", params={"query": statement.format(t=target)}, content=ROWS)
        assert answer.status_code == 400
        assert "X-ClickHouse-Exception-Code" in answer.headers
        assert self.stored(server, target) == []

    def test_or_says_so_when_a_row_does_not_fit(
        self, http: httpx.Client, server: Server, target: str
    ) -> None:
        statement = f"INSERT INTO {target} SELECT toString(n) FROM input('n UInt8') FORMAT TSV"
        answer = http.post("/", params={"query": statement}, content=b"1\nx\n")
        assert answer.status_code == 400
        assert "CANNOT_PARSE" in answer.text
        assert str(server.data_dir) not in answer.text
        assert self.stored(server, target) == []

    def test_counts_what_it_wrote(self, http: httpx.Client, target: str) -> None:
        statement = f"INSERT INTO {target} SELECT x FROM input('x String') FORMAT TSV"
        answer = http.post("/", params={"query": statement}, content=ROWS)
        assert '"written_rows": "3"' in answer.headers["X-ClickHouse-Summary"]


class TestFormats:
    @pytest.fixture
    def target(self, table: MakeTable) -> str:
        return table("(n UInt8, s String DEFAULT concat('d', toString(n))) ENGINE = Memory")

    @pytest.mark.parametrize(
        ("insert_format", "data"),
        [
            ("TSV", b"1\ta\n2\tb\n"),
            ("CSV", b'1,"a"\n2,b\n'),
            ("JSONEachRow", b'{"n":1,"s":"a"}\n{"n":2,"s":"b"}\n'),
            ("Values", b"(1, 'a'), (2, 'b')"),
            ("RowBinary", b"\x01\x01a\x02\x01b"),
            ("TSVWithNames", b"n\ts\n1\ta\n2\tb\n"),
        ],
    )
    @pytest.mark.parametrize("in_url", [True, False])
    def test_land_as_on_a_server(
        self, server: Server, target: str, insert_format: str, data: bytes, in_url: bool
    ) -> None:
        statement = f"INSERT INTO {target} (n, s) FORMAT {insert_format}"
        with server.http() as http:
            if in_url:
                answer = http.post("/", params={"query": statement}, content=data)
            else:
                answer = http.post("/", content=statement.encode() + b"\n" + data)
        assert answer.status_code == 200, answer.text
        assert server.sql(f"SELECT * FROM {target} ORDER BY n FORMAT CSV") == '1,"a"\n2,"b"'

    def test_what_one_table_writes_in_native_another_reads(
        self, server: Server, http: httpx.Client, target: str
    ) -> None:
        block = http.post("/", content="SELECT 7::UInt8 AS n, 'x' AS s FORMAT Native").content
        server.sql(f"INSERT INTO {target} FORMAT Native", block)
        assert server.sql(f"SELECT * FROM {target}") == "7\tx"

    def test_omitted_fields_get_the_tables_defaults(self, server: Server, target: str) -> None:
        server.sql(f"INSERT INTO {target} FORMAT JSONEachRow", b'{"n": 5}')
        assert server.sql(f"SELECT s FROM {target}") == "d5"

    def test_values_may_use_query_parameters(self, server: Server, target: str) -> None:
        server.sql(f"INSERT INTO {target} VALUES (3, {{p:String}})", param_p="it\\'s")
        assert server.sql(f"SELECT s FROM {target} FORMAT TSVRaw") == "it's"

    def test_settings_in_the_statement_are_honoured(self, server: Server, target: str) -> None:
        statement = f"INSERT INTO {target} SETTINGS format_csv_delimiter = ';' FORMAT CSV"
        server.sql(statement, b"1;a\n")
        assert server.sql(f"SELECT s FROM {target}") == "a"

    def test_a_bad_row_inserts_nothing(
        self, server: Server, http: httpx.Client, target: str
    ) -> None:
        answer = http.post(
            "/", params={"query": f"INSERT INTO {target} FORMAT TSV"}, content=b"1\ta\nx\tb\n"
        )
        assert answer.status_code == 400
        assert server.sql(f"SELECT count() FROM {target}") == "0"

    def test_deduplication_tokens_work(self, server: Server, table: MakeTable) -> None:
        target = table(
            "(n UInt8) ENGINE = MergeTree ORDER BY n "
            "SETTINGS non_replicated_deduplication_window = 100"
        )
        for _ in range(2):
            server.sql(
                f"INSERT INTO {target} SELECT n FROM input('n UInt8') FORMAT TSV",
                b"1\n2\n",
                insert_deduplication_token="slice-1",
            )
        assert server.sql(f"SELECT count() FROM {target}") == "2"


class TestCompressedBodies:
    DATA = b"".join(b"%d\n" % number for number in range(200_000))

    @pytest.mark.parametrize(
        ("encoding", "packed"),
        [
            ("gzip", gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:])),
            ("deflate", zlib.compress(DATA)),
            ("zstd", zstandard.compress(DATA[:1000]) + zstandard.compress(DATA[1000:])),
            ("lz4", lz4.frame.compress(DATA)),
        ],
    )
    def test_are_unpacked(
        self, server: Server, http: httpx.Client, table: MakeTable, encoding: str, packed: bytes
    ) -> None:
        target = table("(n UInt64) ENGINE = Memory")
        answer = http.post(
            "/",
            params={"query": f"INSERT INTO {target} FORMAT TSV"},
            content=packed,
            headers={"Content-Encoding": encoding},
        )
        assert answer.status_code == 200, answer.text
        assert server.sql(f"SELECT count(), sum(n) FROM {target}") == "200000\t19999900000"

    @pytest.mark.parametrize("encoding", ["gzip", "zstd", "lz4"])
    def test_that_break_off_insert_nothing(
        self, server: Server, http: httpx.Client, table: MakeTable, encoding: str
    ) -> None:
        pack = {"gzip": gzip.compress, "zstd": zstandard.compress, "lz4": lz4.frame.compress}
        target = table("(n UInt64) ENGINE = Memory")
        answer = http.post(
            "/",
            params={"query": f"INSERT INTO {target} FORMAT TSV"},
            content=pack[encoding](self.DATA)[:-20],
            headers={"Content-Encoding": encoding},
        )
        assert answer.status_code in (400, 500)
        assert server.sql(f"SELECT count() FROM {target}") == "0"

    def test_in_an_unknown_encoding_are_refused(self, http: httpx.Client) -> None:
        answer = http.post("/", content=b"?", headers={"Content-Encoding": "snappy"})
        assert answer.status_code == 501
        assert "gzip" in answer.text


class TestLargeBodies:
    def test_are_not_held_in_memory(self, tmp_path: Path) -> None:
        line = b"x" * 99 + b"\n"
        block = line * 10_000
        blocks = 300

        def body() -> Iterator[bytes]:
            for _ in range(blocks):
                yield block

        with running_server(tmp_path / "data") as server, server.http() as http:
            server.sql("CREATE TABLE t (n UInt64) ENGINE = Memory")
            before = server.resident_peak()
            statement = "INSERT INTO t SELECT count() FROM input('x String') FORMAT LineAsString"
            answer = http.post("/", params={"query": statement}, content=body())
            assert answer.status_code == 200, answer.text
            assert server.sql("SELECT n FROM t") == str(blocks * 10_000)
            grown = server.resident_peak() - before
            assert grown < 150 * 1024 * 1024, f"300 MB in the body, {grown >> 20} MB in memory"
            assert spooled(server) == []

    def test_broken_off_by_the_client_insert_nothing(
        self, server: Server, table: MakeTable
    ) -> None:
        target = table("(x String) ENGINE = Memory")

        def body() -> Iterator[bytes]:
            yield b"a\n" * 1000
            raise ConnectionAbortedError

        with server.http() as http, pytest.raises(ConnectionAbortedError):
            http.post("/", params={"query": f"INSERT INTO {target} FORMAT TSV"}, content=body())
        assert eventually(lambda: spooled(server) == [])
        assert server.sql(f"SELECT count() FROM {target}") == "0"

    def test_leave_no_file_behind_after_an_error(self, server: Server, http: httpx.Client) -> None:
        answer = http.post(
            "/", params={"query": "INSERT INTO no_such_table FORMAT TSV"}, content=b"1\n" * 10_000
        )
        assert answer.status_code == 404
        assert spooled(server) == []


class TestAcknowledgedRows:
    def test_survive_kill_9_in_the_middle_of_inserts(self, tmp_path: Path) -> None:
        data_dir = tmp_path / "data"
        acknowledged: set[int] = set()
        for round_number in range(3):
            with running_server(data_dir) as server:
                if round_number == 0:
                    server.sql("CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n")
                first = round_number * 1_000_000
                kill = threading.Timer(0.7, server.kill)
                kill.start()
                with ThreadPoolExecutor(3) as pool:
                    for inserted in pool.map(
                        lambda worker: insert_until_the_end(server, worker),
                        [first + 100_000 * worker for worker in range(3)],
                    ):
                        acknowledged |= inserted
                kill.join()
            assert len(acknowledged) > round_number
        with running_server(data_dir) as server:
            found = {int(line) for line in server.sql("SELECT n FROM t").split()}
        assert acknowledged <= found

    def test_are_written_with_fsync_unless_the_table_says_otherwise(
        self, server: Server, table: MakeTable
    ) -> None:
        settings = server.sql(
            "SELECT name, value FROM system.merge_tree_settings "
            "WHERE name IN ('fsync_after_insert', 'fsync_part_directory') ORDER BY name"
        )
        assert settings.split() == ["fsync_after_insert", "1", "fsync_part_directory", "1"]
        assert server.sql("SELECT getSetting('async_insert')") == "false"


def insert_until_the_end(server: Server, first: int) -> set[int]:
    done: set[int] = set()
    with server.http() as http:
        for number in range(first, first + 100_000):
            try:
                answer = http.post(
                    "/", params={"query": "INSERT INTO t FORMAT TSV"}, content=b"%d\n" % number
                )
            except httpx.HTTPError:
                return done
            if answer.status_code == 200:
                done.add(number)
    return done


def test_a_schema_that_comes_with_a_statement_is_kept_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine writes it to disk; not into the folder somebody happened to start it from."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    schema = 'syntax = "proto3"; message Row { string text = 1; }'
    sql = (
        "SELECT text FROM format(Protobuf, 'text String', unhex('030a0161')) SETTINGS "
        "format_schema_source = 'string', format_schema_message_name = 'Row', "
        f"format_schema = '{schema}' FORMAT TSV"
    )

    with running_server(tmp_path / "data") as server:
        assert server.sql(sql) == "a"

    assert list(elsewhere.iterdir()) == []
