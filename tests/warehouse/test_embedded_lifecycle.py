"""Starting, owning the folder, and ending: one line of text, seconds, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from embedded_server import (
    Server,
    eventually,
    running_server,
    start_process,
    start_server,
)

from telemetry_pipeline.warehouse.embedded import (
    EmbeddedWarehouseError,
    ensure_users,
    read_endpoint,
    read_users,
    serve,
)

ENDLESS = "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 1"


def failed_start(data_dir: Path, *arguments: str) -> str:
    """What a start that must fail says."""
    process = start_process(data_dir, *arguments)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    return said


def run_in_background(server: Server, sql: str) -> threading.Thread:
    def run() -> None:
        try:
            with server.http() as http:
                http.post("/", content=sql)
        except httpx.HTTPError:
            pass  # the server ended

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert eventually(
        lambda: (
            server.sql("SELECT count() FROM system.processes WHERE query LIKE '%sipHash64%'") > "1"
        )
    )
    return thread


class TestEndpointFile:
    def test_tells_where_the_server_is_while_it_runs(self, tmp_path: Path) -> None:
        with running_server(tmp_path / "data") as server:
            endpoint = read_endpoint(tmp_path / "data")
            assert endpoint is not None
            assert endpoint.pid == server.process.pid
            assert endpoint.host == "127.0.0.1"
            assert httpx.get(f"{endpoint.url}/ping").text == "Ok.\n"
        assert read_endpoint(tmp_path / "data") is None
        assert not (tmp_path / "data" / "endpoint.json").exists()

    def test_left_by_a_killed_server_counts_for_nothing(self, tmp_path: Path) -> None:
        server = start_server(tmp_path / "data")
        server.kill()
        assert (tmp_path / "data" / "endpoint.json").exists()
        assert read_endpoint(tmp_path / "data") is None

    @pytest.mark.parametrize("text", ["", "{", '{"host": 1}', "[]"])
    def test_that_is_damaged_counts_for_nothing(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "endpoint.json").write_text(text)
        assert read_endpoint(tmp_path) is None

    def test_is_missing_before_the_first_start(self, tmp_path: Path) -> None:
        assert read_endpoint(tmp_path / "never") is None

    def test_can_be_read_without_loading_engine_or_web_server(self, tmp_path: Path) -> None:
        program = (
            "import sys\n"
            "from telemetry_pipeline.warehouse.embedded import read_endpoint, read_users\n"
            "print(sorted({'chdb', 'starlette', 'uvicorn', 'lz4'} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == "[]", done.stderr


class TestUsers:
    def test_get_random_passwords_once(self, tmp_path: Path) -> None:
        first, other = ensure_users(tmp_path / "one"), ensure_users(tmp_path / "two")
        assert ensure_users(tmp_path / "one") == first == read_users(tmp_path / "one")
        passwords = {
            user.password for users in (first, other) for user in (users.writer, users.reader)
        }
        assert len(passwords) == 4
        assert (first.writer.name, first.reader.name) == ("telemetry", "telemetry_reader")

    def test_are_readable_by_the_owner_only(self, tmp_path: Path) -> None:
        ensure_users(tmp_path / "data")
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "data" / "users.json").stat().st_mode & 0o777 == 0o600

    def test_are_not_shown_with_their_password(self, tmp_path: Path) -> None:
        users = ensure_users(tmp_path)
        assert users.writer.password not in repr(users)

    def test_are_the_same_for_all_who_make_them_at_once(self, tmp_path: Path) -> None:
        found: list[object] = []
        threads = [
            threading.Thread(target=lambda: found.append(ensure_users(tmp_path))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert all(users == found[0] for users in found)
        assert [path.name for path in tmp_path.iterdir()] == ["users.json"]


class TestASecondStart:
    def test_names_the_server_that_holds_the_folder(self, tmp_path: Path) -> None:
        with running_server(tmp_path / "data") as server:
            said = failed_start(tmp_path / "data")
            assert said.count("\n") == 1
            assert str(server.process.pid) in said
            assert server.endpoint.url in said
            assert server.sql("SELECT 1") == "1"
            assert read_endpoint(tmp_path / "data") == server.endpoint

    def test_on_a_used_port_says_so(self, tmp_path: Path) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            said = failed_start(tmp_path / "data", "--port", str(port))
        assert said.count("\n") == 1
        assert f"127.0.0.1:{port}" in said
        assert "in use" in said

    def test_in_an_unusable_folder_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        said = failed_start(tmp_path / "file" / "data")
        assert said.count("\n") == 1
        assert str(tmp_path / "file" / "data") in said

    def test_in_a_folder_the_engine_would_misread_says_so(self, tmp_path: Path) -> None:
        said = failed_start(tmp_path / "a*b")
        assert said.count("\n") == 1
        assert "'*'" in said

    def test_on_a_database_another_program_has_open_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        program = (
            "import chdb, sys\n"
            f"session = chdb.session.Session({str(tmp_path / 'data' / 'database')!r})\n"
            "session.query('SELECT 1')\n"
            "print('open', flush=True)\n"
            "sys.stdin.read()"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", f"import chdb.session\n{program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            said = failed_start(tmp_path / "data")
        finally:
            other.kill()
            other.communicate()
        # The engine may print a line of its own before ours.
        line = said.splitlines()[-1]
        assert line.startswith(f"error: the database in {tmp_path / 'data' / 'database'} cannot")
        assert "Traceback" not in said

    def test_raises_its_own_error_in_a_program(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(EmbeddedWarehouseError):
            serve(tmp_path / "file" / "data")

    def test_works_after_the_first_one_was_killed(self, tmp_path: Path) -> None:
        first = start_server(tmp_path / "data")
        first.sql("CREATE TABLE kept (n UInt8) ENGINE = MergeTree ORDER BY n")
        first.sql("INSERT INTO kept VALUES (7)")
        (tmp_path / "data" / "tmp" / "leftover.rows").write_bytes(b"half a body")
        first.kill()
        with running_server(tmp_path / "data") as second:
            assert second.sql("SELECT n FROM kept") == "7"
            assert second.users == first.users
            assert list((tmp_path / "data" / "tmp").iterdir()) == []


class TestSigterm:
    def test_ends_an_idle_server_cleanly(self, tmp_path: Path) -> None:
        server = start_server(tmp_path / "data")
        assert server.terminate() < 5
        assert server.process.returncode == 0
        assert read_endpoint(tmp_path / "data") is None

    def test_ends_it_within_five_seconds_under_running_queries(self, tmp_path: Path) -> None:
        server = start_server(tmp_path / "data")
        threads = [
            run_in_background(server, ENDLESS),
            run_in_background(server, f"{ENDLESS} FORMAT JSON"),
        ]
        assert server.terminate() < 5
        for thread in threads:
            thread.join(timeout=10)
        assert not (tmp_path / "data" / "endpoint.json").exists()
        with running_server(tmp_path / "data") as again:
            assert again.sql("SELECT 1") == "1"

    def test_is_what_sigint_does_too(self, tmp_path: Path) -> None:
        server = start_server(tmp_path / "data")
        server.process.send_signal(signal.SIGINT)
        server.process.communicate(timeout=5)
        assert server.process.returncode == 0

    def test_answers_the_killed_query_with_an_error(self, tmp_path: Path) -> None:
        server = start_server(tmp_path / "data")
        answers: list[httpx.Response] = []

        def ask() -> None:
            with server.http() as http:
                answers.append(http.post("/", content=f"{ENDLESS} FORMAT JSON"))

        thread = threading.Thread(target=ask)
        thread.start()
        assert eventually(
            lambda: (
                server.sql("SELECT count() FROM system.processes WHERE query LIKE '%= 1 FOR%'")
                > "1"
            )
        )
        server.terminate()
        thread.join(timeout=10)
        assert "QUERY_WAS_CANCELLED" in answers[0].text


class TestListening:
    def test_is_on_loopback_only_by_default(self, server: Server) -> None:
        port = f"{server.endpoint.port:04X}"
        listening = [
            line.split()[1]
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()
            if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
        ]
        assert listening == [f"0100007F:{port}"]

    def test_prints_one_line_when_ready(self, tmp_path: Path) -> None:
        process = start_process(tmp_path / "data")
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("warehouse ready on http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=10)
        assert (rest, errors) == ("", "")


def test_the_memory_limit_is_the_engines(tmp_path: Path) -> None:
    with running_server(tmp_path / "data", "--max-memory-bytes", "700000000") as server:
        with server.http() as http:
            answer = http.post(
                "/", content="SELECT length(groupArray(number)) FROM numbers(200000000)"
            )
        assert "MEMORY_LIMIT_EXCEEDED" in answer.text
        assert server.sql("SELECT 1") == "1"


def test_time_is_utc_whatever_the_machine_says(tmp_path: Path) -> None:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "America/New_York"
    time.tzset()
    try:
        with running_server(tmp_path / "data") as server:
            assert server.sql("SELECT timezone(), serverTimezone()") == "UTC\tUTC"
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()
