"""The HTTP interface as plain HTTP: credentials, headers, errors, formats, hang-ups."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

import httpx
import lz4.frame
import pytest
import zstandard
from embedded_server import Server, eventually

from telemetry_pipeline.warehouse.embedded.engine import STREAMABLE_FORMATS

SLOW = "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 2"


def running(server: Server, mark: str) -> int:
    return int(
        server.sql(
            "SELECT count() FROM system.processes "
            f"WHERE query LIKE '%{mark}%' AND query NOT LIKE '%system.processes%'"
        )
    )


class TestCredentials:
    @pytest.mark.parametrize("path", ["/ping", "/replicas_status", "/"])
    def test_are_not_needed_to_ask_whether_it_lives(self, server: Server, path: str) -> None:
        answer = httpx.get(server.endpoint.url + path)
        assert (answer.status_code, answer.text) == (200, "Ok.\n")

    @pytest.mark.parametrize(
        "auth",
        [None, ("telemetry", "wrong"), ("telemetry", ""), ("nobody", "x"), ("default", "")],
    )
    def test_that_are_missing_or_wrong_get_clickhouses_answer(
        self, server: Server, auth: tuple[str, str] | None
    ) -> None:
        answer = httpx.post(server.endpoint.url, content="SELECT 1", auth=auth)
        assert answer.status_code == 403
        assert answer.headers["X-ClickHouse-Exception-Code"] == "516"
        name = auth[0] if auth else "default"
        assert answer.text == (
            f"Code: 516. DB::Exception: {name}: Authentication failed: password is incorrect, "
            "or there is no user with such name. (AUTHENTICATION_FAILED)\n"
        )

    def test_of_one_user_do_not_open_the_other(self, server: Server) -> None:
        crossed = (server.users.writer.name, server.users.reader.password)
        assert httpx.post(server.endpoint.url, content="SELECT 1", auth=crossed).status_code == 403

    def test_may_come_in_clickhouses_headers(self, server: Server) -> None:
        user = server.users.writer
        headers = {"X-ClickHouse-User": user.name, "X-ClickHouse-Key": user.password}
        answer = httpx.post(server.endpoint.url, content="SELECT 1", headers=headers)
        assert answer.text == "1\n"

    def test_may_come_in_the_url(self, server: Server) -> None:
        user = server.users.writer
        parameters = {"user": user.name, "password": user.password}
        answer = httpx.post(server.endpoint.url, params=parameters, content="SELECT 1")
        assert answer.text == "1\n"

    @pytest.mark.parametrize("value", ["Basic", "Basic !!", "Basic " + b64encode(b"\xff").decode()])
    def test_that_are_damaged_are_wrong_ones(self, server: Server, value: str) -> None:
        answer = httpx.post(
            server.endpoint.url, content="SELECT 1", headers={"Authorization": value}
        )
        assert answer.status_code == 403


class TestQueries:
    def test_come_in_the_body_the_url_or_both(self, http: httpx.Client) -> None:
        assert http.post("/", content="SELECT 1").text == "1\n"
        assert http.get("/", params={"query": "SELECT 2"}).text == "2\n"
        assert http.post("/", params={"query": "SELECT"}, content="3").text == "3\n"

    def test_come_in_multipart_forms(self, http: httpx.Client) -> None:
        fields = {"query": (None, "SELECT {p:String}"), "param_p": (None, "x")}
        assert http.post("/", files=fields).text == "x\n"

    def test_with_external_tables_are_refused_with_the_way_out(self, http: httpx.Client) -> None:
        answer = http.post(
            "/", params={"query": "SELECT * FROM ext"}, files={"ext": ("ext", b"1\n")}
        )
        assert answer.status_code == 501
        assert "CREATE TEMPORARY TABLE" in answer.text

    def test_take_parameters(self, http: httpx.Client) -> None:
        answer = http.post(
            "/",
            params={"param_s": "it\\'s\\ta", "param_n": "5", "param_a": "['x','y']"},
            content="SELECT {s:String}, {n:UInt8} + 1, {a:Array(String)}[2] FORMAT TSVRaw",
        )
        assert answer.text == "it's\ta\t6\ty\n"

    def test_take_settings_from_the_url(self, http: httpx.Client) -> None:
        answer = http.post(
            "/", params={"max_threads": "3"}, content="SELECT getSetting('max_threads')"
        )
        assert answer.text == "3\n"
        assert http.post("/", content="SELECT getSetting('max_threads')").text != "3\n"

    def test_run_in_the_database_asked_for(self, http: httpx.Client) -> None:
        content = "SELECT currentDatabase()"
        assert http.post("/", params={"database": "system"}, content=content).text == "system\n"
        assert http.post("/", content=content).text == "default\n"

    def test_by_get_only_read(self, server: Server, http: httpx.Client) -> None:
        answer = http.get("/", params={"query": "CREATE TABLE by_get (n UInt8) ENGINE = Memory"})
        assert "(READONLY)" in answer.text
        assert server.sql("EXISTS by_get") == "0"

    @pytest.mark.parametrize("readonly", ["1", "2"])
    def test_only_read_if_the_client_asks_for_that(self, http: httpx.Client, readonly: str) -> None:
        parameters = {"readonly": readonly, "max_threads": "2"}
        assert http.post("/", params=parameters, content="SELECT 1").text == "1\n"
        sql = "CREATE TABLE by_readonly (n UInt8) ENGINE = Memory"
        assert "(READONLY)" in http.post("/", params=parameters, content=sql).text

    def test_of_more_than_one_statement_are_refused(self, http: httpx.Client) -> None:
        answer = http.post("/", content="SELECT 1; SELECT 2")
        assert answer.status_code == 400
        assert "Multi-statements are not allowed" in answer.text

    def test_in_clickhouses_block_compression_are_refused(self, http: httpx.Client) -> None:
        for name in ("compress", "decompress"):
            answer = http.post("/", params={name: "1"}, content="SELECT 1")
            assert answer.status_code == 501
            assert http.post("/", params={name: "0"}, content="SELECT 1").text == "1\n"

    def test_run_in_parallel(self, server: Server) -> None:
        with ThreadPoolExecutor(4) as pool:
            started = time.monotonic()
            list(pool.map(server.sql, ["SELECT sleep(1)"] * 4))
            assert time.monotonic() - started < 3.5  # one after the other takes four seconds

    def test_beyond_the_cap_wait_and_are_answered(self, server: Server) -> None:
        with ThreadPoolExecutor(60) as pool:
            answers = list(pool.map(server.sql, ["SELECT sleep(0.1)"] * 60))
        assert answers == ["0"] * 60


class TestAnswers:
    def test_carry_clickhouses_headers(self, http: httpx.Client) -> None:
        answer = http.post(
            "/",
            params={"query_id": "my-id"},
            content="SELECT number FROM numbers(3) FORMAT JSONEachRow",
        )
        assert answer.headers["X-ClickHouse-Query-Id"] == "my-id"
        assert answer.headers["X-ClickHouse-Format"] == "JSONEachRow"
        assert answer.headers["X-ClickHouse-Timezone"] == "UTC"
        summary = json.loads(answer.headers["X-ClickHouse-Summary"])
        assert summary["read_rows"] == "3"
        assert summary["result_rows"] == "3"
        assert int(summary["elapsed_ns"]) > 0

    def test_get_an_id_if_the_client_gives_none(self, http: httpx.Client) -> None:
        ids = {
            http.post("/", content="SELECT 1").headers["X-ClickHouse-Query-Id"] for _ in range(2)
        }
        assert len(ids) == 2

    def test_come_in_the_format_of_query_url_or_header(self, http: httpx.Client) -> None:
        in_query = http.post("/", params={"default_format": "CSV"}, content="SELECT 1 FORMAT JSON")
        assert in_query.headers["X-ClickHouse-Format"] == "JSON"
        assert in_query.json()["data"] == [{"1": 1}]
        in_url = http.post("/", params={"default_format": "CSV"}, content="SELECT 'a'")
        assert in_url.text == '"a"\n'
        in_header = http.post("/", headers={"X-ClickHouse-Format": "CSV"}, content="SELECT 'a'")
        assert in_header.text == '"a"\n'

    @pytest.mark.parametrize("output_format", sorted(STREAMABLE_FORMATS))
    @pytest.mark.parametrize("wait", ["0", "1"])
    def test_in_pieces_are_the_whole_answer(
        self, http: httpx.Client, output_format: str, wait: str
    ) -> None:
        rows = 500_000
        sql = f"SELECT number FROM numbers({rows}) FORMAT {output_format}"
        # The same rows read back by the engine are the proof that no header repeats.
        answer = http.post("/", params={"wait_end_of_query": wait}, content=sql)
        assert answer.status_code == 200
        assert len(answer.content) > 1024 * 1024
        raw = output_format in ("tsvraw", "tabseparatedraw")
        insert_format = "TSV" if raw else output_format
        count = http.post(
            "/", content="CREATE TABLE IF NOT EXISTS pieces (number UInt64) ENGINE = Memory"
        )
        assert count.status_code == 200
        http.post("/", content="TRUNCATE TABLE pieces")
        sent = http.post(
            "/",
            params={"query": f"INSERT INTO pieces FORMAT {insert_format}"},
            content=answer.content,
        )
        assert sent.status_code == 200, sent.text
        found = http.post("/", content="SELECT count(), sum(number) FROM pieces").text
        assert found == f"{rows}\t{rows * (rows - 1) // 2}\n"

    @pytest.mark.parametrize("output_format", ["Parquet", "Arrow", "TSVWithNames", "JSON"])
    def test_with_a_header_have_it_once(self, http: httpx.Client, output_format: str) -> None:
        sql = f"SELECT number FROM numbers(200000) FORMAT {output_format}"
        content = http.post("/", content=sql).content
        if output_format == "JSON":
            assert json.loads(content)["rows"] == 200_000
        elif output_format == "TSVWithNames":
            assert content.count(b"number\n") == 1
        else:
            mark = {"Parquet": b"PAR1", "Arrow": b"ARROW1"}[output_format]
            assert content.startswith(mark)
            assert content.count(mark) == 2  # the first and the last bytes of the file

    def test_are_streamed_before_the_query_ends(self, server: Server) -> None:
        sql = "SELECT number FROM numbers(100000000000)"
        with server.http() as http, http.stream("POST", "/", content=sql) as answer:
            assert answer.status_code == 200
            first = next(answer.iter_bytes())
        assert first.startswith(b"0\n1\n2\n")

    def test_of_any_size_are_streamed_within_bounded_memory(self, server: Server) -> None:
        before = server.resident_peak()
        received = 0
        sql = "SELECT repeat('x', 99) FROM numbers(6000000)"
        with server.http() as http, http.stream("POST", "/", content=sql) as answer:
            for piece in answer.iter_bytes():
                received += len(piece)
        assert received == 6_000_000 * 100
        assert server.resident_peak() - before < 150 * 1024 * 1024


class TestCompressedAnswers:
    @pytest.mark.parametrize("encoding", ["gzip", "zstd", "lz4", "deflate"])
    @pytest.mark.parametrize("rows", [3, 400_000])
    def test_are_what_the_client_accepts(self, server: Server, encoding: str, rows: int) -> None:
        sql = f"SELECT number FROM numbers({rows})"
        headers = {"Accept-Encoding": encoding}
        parameters = {"enable_http_compression": "1"}
        with (
            server.http() as http,
            http.stream("POST", "/", params=parameters, headers=headers, content=sql) as answer,
        ):
            packed = b"".join(answer.iter_raw())
        assert answer.headers["Content-Encoding"] == encoding
        unpack = {
            "gzip": gzip.decompress,
            "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
            "lz4": lz4.frame.decompress,
            "deflate": zlib.decompress,
        }
        assert unpack[encoding](packed).count(b"\n") == rows

    def test_only_come_when_asked_for(self, http: httpx.Client) -> None:
        answer = http.post("/", content="SELECT 1", headers={"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in answer.headers

    def test_in_no_encoding_known_are_plain(self, http: httpx.Client) -> None:
        answer = http.post(
            "/",
            params={"enable_http_compression": "1"},
            content="SELECT 1",
            headers={"Accept-Encoding": "br;q=1.0, gzip;q=0"},
        )
        assert answer.text == "1\n"


class TestErrors:
    @pytest.mark.parametrize(
        ("sql", "status", "code", "name"),
        [
            ("SELEC 1", 400, "62", "SYNTAX_ERROR"),
            ("1 + 1", 400, "62", "SYNTAX_ERROR"),
            ("SELECT * FROM system.no_such", 404, "60", "UNKNOWN_TABLE"),
            ("SELECT no_such", 404, "47", "UNKNOWN_IDENTIFIER"),
            ("SELECT no_such()", 404, "46", "UNKNOWN_FUNCTION"),
            ("SELECT 1 FORMAT NoSuch", 404, "73", "UNKNOWN_FORMAT"),
            ("SELECT 1 SETTINGS no_such = 1", 404, "115", "UNKNOWN_SETTING"),
            ("SELECT toUInt8('x')", 400, "6", "CANNOT_PARSE_TEXT"),
            ("SELECT throwIf(1)", 500, "395", "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
            ("SELECT sleep(3) SETTINGS max_execution_time = 0.5", 408, "159", "TIMEOUT_EXCEEDED"),
        ],
    )
    def test_have_clickhouses_code_name_and_status(
        self, http: httpx.Client, sql: str, status: int, code: str, name: str
    ) -> None:
        answer = http.post("/", content=sql)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (status, code)
        assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
        assert answer.text.endswith(f"({name})\n")
        assert answer.text.count("DB::Exception") == 1

    def test_of_the_database_and_settings_in_the_url(self, http: httpx.Client) -> None:
        assert http.post("/", params={"database": "x"}, content="SELECT 1").status_code == 404
        unknown = http.post("/", params={"no_such": "1"}, content="SELECT 1")
        assert "UNKNOWN_SETTING" in unknown.text
        damaged = http.post("/", params={"a'b": "1"}, content="SELECT 1")
        assert "BAD_ARGUMENTS" in damaged.text

    def test_while_an_answer_streams_are_marked_and_cut_it_off(self, server: Server) -> None:
        sql = "SELECT throwIf(number = 3000000), number FROM numbers(4000000)"
        received: list[bytes] = []
        with (
            server.http() as http,
            pytest.raises(httpx.RemoteProtocolError),
            http.stream("POST", "/", content=sql) as answer,
        ):
            received.extend(answer.iter_bytes())
        tag = answer.headers["X-ClickHouse-Exception-Tag"]
        tail = b"".join(received)[-2000:].decode()
        assert f"__exception__\r\n{tag}\r\nCode: 395. DB::Exception: " in tail
        assert tail.endswith(f" {tag}\r\n__exception__\r\n")

    def test_are_answered_as_such_when_the_client_waits_for_the_end(
        self, http: httpx.Client
    ) -> None:
        sql = "SELECT throwIf(number = 3000000), number FROM numbers(4000000)"
        answer = http.post("/", params={"wait_end_of_query": "1"}, content=sql)
        assert answer.status_code == 500
        assert answer.text.startswith("Code: 395.")

    def test_for_a_wrong_path(self, server: Server) -> None:
        assert httpx.get(f"{server.endpoint.url}/nowhere").status_code == 404


class TestKilling:
    @pytest.mark.parametrize("suffix", ["", " FORMAT JSON", " FORMAT TSV"])
    def test_a_client_that_hangs_up_has_its_query_killed(self, server: Server, suffix: str) -> None:
        mark = f"hang up{len(suffix)}"
        body = f"{SLOW} AND '{mark}' != ''{suffix}".encode()
        user = server.users.writer
        token = b64encode(f"{user.name}:{user.password}".encode())
        with socket.create_connection((server.endpoint.host, server.endpoint.port)) as client:
            client.sendall(
                b"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic %b\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (token, len(body), body)
            )
            assert eventually(lambda: running(server, mark) == 1)
        assert eventually(lambda: running(server, mark) == 0)

    def test_a_client_that_stops_reading_a_stream_has_its_query_killed(
        self, server: Server
    ) -> None:
        sql = "SELECT number, 'stops reading' FROM numbers(100000000000)"
        with server.http() as http, http.stream("POST", "/", content=sql) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            assert running(server, "stops reading") == 1
        assert eventually(lambda: running(server, "stops reading") == 0)

    def test_a_query_can_be_killed_by_the_id_its_client_chose(self, server: Server) -> None:
        answers: list[httpx.Response] = []

        def ask() -> None:
            with server.http() as http:
                answers.append(
                    http.post(
                        "/", params={"query_id": "batch-1-2"}, content=f"{SLOW} AND 'by id' != ''"
                    )
                )

        thread = threading.Thread(target=ask)
        thread.start()
        assert eventually(lambda: running(server, "by id") == 1)
        kill = "KILL QUERY WHERE query_id = {query_id:String} SYNC"
        server.sql(kill, param_query_id="another")
        assert running(server, "by id") == 1
        server.sql(kill, param_query_id="batch-1-2")
        thread.join(timeout=15)
        assert "QUERY_WAS_CANCELLED" in answers[0].text

    def test_an_id_is_used_by_one_query_at_a_time(self, server: Server) -> None:
        thread = threading.Thread(
            target=lambda: server.sql("SELECT sleep(2), 'same id'", query_id="same")
        )
        thread.start()
        assert eventually(lambda: running(server, "same id") == 1)
        with server.http() as http:
            answer = http.post("/", params={"query_id": "same"}, content="SELECT 1")
        assert "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING" in answer.text
        thread.join()
        assert server.sql("SELECT 1", query_id="same") == "1"
