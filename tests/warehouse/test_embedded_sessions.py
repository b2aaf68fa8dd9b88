"""Sessions: temporary tables and settings that live over several requests, and no longer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from embedded_server import Server, eventually


def ask(http: httpx.Client, sql: str, session: str, **parameters: str) -> httpx.Response:
    return http.post("/", params={"session_id": session, **parameters}, content=sql)


def answer(http: httpx.Client, sql: str, session: str, **parameters: str) -> str:
    response = ask(http, sql, session, **parameters)
    assert response.status_code == 200, response.text
    return response.text.strip()


class TestTemporaryTables:
    def test_live_over_the_requests_of_a_session(self, server: Server, http: httpx.Client) -> None:
        answer(http, "CREATE TEMPORARY TABLE batch (x String)", "s-live")
        answer(
            http, "INSERT INTO batch SELECT x FROM input('x String') FORMAT TSV\na\nb\n", "s-live"
        )
        answer(http, "INSERT INTO batch FORMAT TSV\nc\n", "s-live")
        answer(http, "CREATE TABLE from_batch (x String) ENGINE = MergeTree ORDER BY x", "s-live")
        answer(http, "INSERT INTO from_batch SELECT x FROM batch", "s-live")
        assert server.sql("SELECT x FROM from_batch ORDER BY x").split() == ["a", "b", "c"]
        server.sql("DROP TABLE from_batch")

    def test_are_unknown_without_and_in_another_session(
        self, server: Server, http: httpx.Client
    ) -> None:
        answer(http, "CREATE TEMPORARY TABLE mine (x UInt8)", "s-one")
        answer(http, "INSERT INTO mine VALUES (1)", "s-one")
        answer(http, "CREATE TEMPORARY TABLE mine (y String)", "s-two")
        assert answer(http, "SELECT x FROM mine", "s-one") == "1"
        assert answer(http, "SELECT count() FROM mine", "s-two") == "0"
        assert ask(http, "SELECT * FROM mine", "s-three").status_code == 404
        assert http.post("/", content="SELECT * FROM mine").status_code == 404

    def test_end_with_drop(self, http: httpx.Client) -> None:
        answer(http, "CREATE TEMPORARY TABLE dropped (x UInt8)", "s-drop")
        answer(http, "DROP TABLE dropped", "s-drop")
        assert ask(http, "SELECT * FROM dropped", "s-drop").status_code == 404

    def test_end_with_the_sessions_timeout(self, http: httpx.Client) -> None:
        answer(http, "CREATE TEMPORARY TABLE brief (x UInt8)", "s-brief", session_timeout="1")
        assert eventually(
            lambda: (
                (time.sleep(3), ask(http, "SELECT 1", "s-brief", session_check="1"))[1].status_code
                == 404
            )
        )
        assert ask(http, "SELECT * FROM brief", "s-brief").status_code == 404

    def test_end_when_the_client_closes_the_session(self, http: httpx.Client) -> None:
        answer(http, "CREATE TEMPORARY TABLE closed (x UInt8)", "s-close", close_session="1")
        assert ask(http, "SELECT * FROM closed", "s-close").status_code == 404

    def test_belong_to_one_user(self, server: Server, http: httpx.Client) -> None:
        answer(http, "CREATE TEMPORARY TABLE owned (x UInt8)", "s-user")
        with server.http(server.users.reader) as reader:
            assert ask(reader, "SELECT * FROM owned", "s-user").status_code != 200


class TestSettings:
    def test_of_a_set_statement_stay(self, http: httpx.Client) -> None:
        answer(http, "SET max_threads = 3", "s-set")
        assert answer(http, "SELECT getSetting('max_threads')", "s-set") == "3"

    def test_of_a_request_end_with_it(self, http: httpx.Client) -> None:
        sql = "SELECT getSetting('max_threads'), getSetting('max_block_size')"
        default = answer(http, sql, "s-request")
        assert answer(http, sql, "s-request", max_threads="7", max_block_size="11") == "7\t11"
        assert answer(http, sql, "s-request", max_threads="7").startswith("7\t6")
        assert answer(http, sql, "s-request") == default

    def test_of_a_request_give_way_to_those_of_the_session(self, http: httpx.Client) -> None:
        sql = "SELECT getSetting('max_threads')"
        answer(http, "SET max_threads = 3", "s-back")
        assert answer(http, sql, "s-back", max_threads="7") == "7"
        answer(http, "SET max_threads = 4", "s-back", max_threads="7")
        assert answer(http, sql, "s-back", max_threads="7") == "7"
        assert answer(http, sql, "s-back") == "4"

    def test_that_are_wrong_leave_the_session_usable(self, http: httpx.Client) -> None:
        assert ask(http, "SELECT 1", "s-wrong", no_such="1").status_code == 404
        assert ask(http, "SELECT 1", "s-wrong", max_threads="x").status_code >= 400
        assert answer(http, "SELECT 1", "s-wrong") == "1"

    def test_use_stays_and_the_database_of_a_request_does_not(self, http: httpx.Client) -> None:
        sql = "SELECT currentDatabase()"
        answer(http, "USE system", "s-use")
        assert answer(http, sql, "s-use") == "system"
        assert answer(http, sql, "s-use", database="default") == "default"
        assert answer(http, sql, "s-use") == "system"

    def test_parameters_end_with_their_request(self, http: httpx.Client) -> None:
        assert answer(http, "SELECT {p:String}", "s-param", param_p="x") == "x"
        assert ask(http, "SELECT {p:String}", "s-param").status_code >= 400


class TestOneSession:
    def test_runs_its_requests_one_after_the_other(self, server: Server) -> None:
        running: list[int] = []

        def request(_: int) -> None:
            with server.http() as http:
                answer(http, "SELECT sleep(0.1)", "s-serial")
                running.append(1)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(request, range(8)))
        assert len(running) == 8

    def test_is_made_once_by_two_first_requests(self, server: Server) -> None:
        def request(number: int) -> None:
            with server.http() as http:
                answer(http, f"CREATE TEMPORARY TABLE r{number} (x UInt8)", "s-race")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(request, range(6)))
        with server.http() as http:
            for number in range(6):
                assert answer(http, f"SELECT count() FROM r{number}", "s-race") == "0"

    def test_goes_on_after_its_client_hung_up(self, server: Server, http: httpx.Client) -> None:
        answer(http, "CREATE TEMPORARY TABLE stays (x UInt8)", "s-hung")
        with pytest.raises(httpx.ReadTimeout), server.http() as impatient:
            impatient.timeout = httpx.Timeout(0.5)
            ask(
                impatient,
                "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 3",
                "s-hung",
            )
        assert answer(http, "SELECT count() FROM stays", "s-hung") == "0"

    def test_does_not_hold_up_another(self, server: Server, http: httpx.Client) -> None:
        def slow() -> None:
            with server.http() as client:
                answer(client, "SELECT sleep(2)", "s-slow")

        thread = threading.Thread(target=slow)
        thread.start()
        started = time.monotonic()
        assert answer(http, "SELECT 1", "s-quick") == "1"
        assert time.monotonic() - started < 1.5
        thread.join()


class TestRequests:
    def test_for_a_session_that_must_exist_fail_without_it(self, http: httpx.Client) -> None:
        missing = ask(http, "SELECT 1", "s-none", session_check="1")
        assert missing.headers["X-ClickHouse-Exception-Code"] == "372"
        answer(http, "SELECT 1", "s-some")
        assert answer(http, "SELECT 1", "s-some", session_check="1") == "1"

    @pytest.mark.parametrize("timeout", ["x", "-1", "3601"])
    def test_with_an_invalid_timeout_are_refused(self, http: httpx.Client, timeout: str) -> None:
        refused = ask(http, "SELECT 1", "s-timeout", session_timeout=timeout)
        assert refused.headers["X-ClickHouse-Exception-Code"] == "374"
