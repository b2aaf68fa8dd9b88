"""The local Amplitude server keeps the documented rules, over real HTTP."""

from __future__ import annotations

import html.parser
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from telemetry_pipeline.demo.amplitude_server import (
    DEDUPLICATION_SECONDS,
    Faults,
    ServerSettings,
    running,
    serve,
)
from telemetry_pipeline.errors import TelemetryError

KEY = "key-of-the-local-amplitude"
NOW = 1_790_000_000.0


class Clock:
    """A clock the test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Amplitude:
    """A client of the server under test."""

    http: httpx.Client
    clock: Clock

    def post(self, *events: object, key: str = KEY, **more: object) -> httpx.Response:
        return self.http.post("/2/httpapi", json={"api_key": key, "events": events, **more})

    def summary(self) -> dict[str, object]:
        found: dict[str, object] = self.http.get("/received/summary").json()
        return found

    def stored(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.http.get("/received").json()
        return found


@contextmanager
def amplitude(
    folder: Path,
    *,
    limit: int | None = 30,
    faults: Faults | None = None,
    clock: Clock | None = None,
) -> Iterator[Amplitude]:
    clock = clock or Clock()
    settings = ServerSettings(folder, KEY, limit, faults=faults or Faults(), clock=clock)
    with running(settings) as url, httpx.Client(base_url=url) as http:
        yield Amplitude(http, clock)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Amplitude]:
    with amplitude(tmp_path) as running_server:
        yield running_server


def event(number: int = 0, **changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "event_type": "trial_started",
        "device_id": f"device-{number}",
        "user_id": f"user-{number}",
        "insert_id": f"insert-{number}",
        "time": 1_790_000_000_000,
    }
    return {name: value for name, value in (base | changes).items() if value is not None}


def test_accepted_events_are_answered_stored_and_counted(server: Amplitude) -> None:
    answer = server.post(event(1), event(2, event_type="subscription_started"))
    assert answer.status_code == 200
    assert answer.json() == {
        "code": 200,
        "events_ingested": 2,
        "payload_size_bytes": len(answer.request.content),
        "server_upload_time": int(NOW * 1000),
    }
    assert [stored["insert_id"] for stored in server.stored()] == ["insert-2", "insert-1"]
    assert server.summary() == {
        "events": 2,
        "stored": 2,
        "requests": 1,
        "duplicates": 0,
        "by_type": {"subscription_started": 1, "trial_started": 1},
    }


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"event_type": None}, {"events_with_missing_fields": {"event_type": [1]}}),
        ({"event_type": ""}, {"events_with_missing_fields": {"event_type": [1]}}),
        ({"event_type": 7}, {"events_with_invalid_fields": {"event_type": [1]}}),
        (
            {"user_id": None, "device_id": None},
            {"events_with_missing_fields": {"user_id": [1]}},
        ),
        ({"user_id": "abcd"}, {"events_with_invalid_id_lengths": {"user_id": [1]}}),
        ({"device_id": "ab"}, {"events_with_invalid_id_lengths": {"device_id": [1]}}),
        ({"user_id": "Anonymous"}, {"events_with_invalid_fields": {"user_id": [1]}}),
        ({"user_id": "null"}, {"events_with_invalid_fields": {"user_id": [1]}}),
        ({"user_id": "-1"}, {"events_with_invalid_fields": {"user_id": [1]}}),
        (
            {"device_id": "00000000-0000-0000-0000-000000000000"},
            {"events_with_invalid_fields": {"device_id": [1]}},
        ),
        ({"user_id": "half \ud800 a pair"}, {"events_with_invalid_fields": {"user_id": [1]}}),
        ({"time": 1_790_000_000}, {"events_with_invalid_fields": {"time": [1]}}),
        ({"time": "yesterday"}, {"events_with_invalid_fields": {"time": [1]}}),
        ({"session_id": -2}, {"events_with_invalid_fields": {"session_id": [1]}}),
        (
            {"event_properties": {"a": "x" * 1025}},
            {"events_with_invalid_fields": {"event_properties": [1]}},
        ),
        ({"groups": ["not", "an object"]}, {"events_with_invalid_fields": {"groups": [1]}}),
    ],
)
def test_a_bad_event_fails_the_request_and_is_named_by_field_and_index(
    server: Amplitude, bad: dict[str, object], expected: dict[str, object]
) -> None:
    # Half a surrogate pair travels escaped only, which httpx does not do.
    body = json.dumps({"api_key": KEY, "events": [event(1), event(2, **bad)]})
    answer = server.http.post("/2/httpapi", content=body)
    assert answer.status_code == 400
    found = answer.json()
    assert {name: found[name] for name in found if name.startswith("events_with")} == expected
    assert server.summary()["events"] == 0


def test_only_the_first_bad_event_of_each_field_is_named(server: Amplitude) -> None:
    answer = server.post(
        event(0),
        event(1, time=1),
        event(2, time=2, event_type=None),
        event(3, event_type=None),
    )
    assert answer.json()["events_with_invalid_fields"] == {"time": [1]}
    assert answer.json()["events_with_missing_fields"] == {"event_type": [2]}


def test_the_minimum_id_length_is_an_option_of_the_request(server: Amplitude) -> None:
    short = event(1, user_id="ab", device_id="cd")
    assert server.post(short).status_code == 400
    assert server.post(short, options={"min_id_length": 2}).status_code == 200
    assert server.post(event(2), options={"min_id_length": 50}).status_code == 400


def test_depth_40_is_taken_and_more_is_not(server: Amplitude) -> None:
    def nested(depth: int) -> object:
        return {"a": nested(depth - 1)} if depth else 1

    assert server.post(event(1, event_properties=nested(40))).status_code == 200
    assert server.post(event(2, event_properties=nested(41))).status_code == 400


@pytest.mark.parametrize("body", ["not json", "[1]", '{"api_key": ', "[" * 100_000])
def test_what_is_no_json_object_is_a_bad_request(server: Amplitude, body: str) -> None:
    answer = server.http.post("/2/httpapi", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, 400)


def test_a_missing_or_wrong_key_is_refused(server: Amplitude) -> None:
    wrong = server.post(event(1), key="another-key")
    assert (wrong.status_code, wrong.json()["error"]) == (400, "Invalid API key: another-key")
    missing = server.http.post("/2/httpapi", json={"events": [event(1)]})
    assert (missing.status_code, missing.json()["missing_field"]) == (400, "api_key")
    empty = server.http.post("/2/httpapi", json={"api_key": KEY, "events": []})
    assert (empty.status_code, empty.json()["missing_field"]) == (400, "events")
    assert server.summary()["events"] == 0


def test_2000_events_and_1_mb_are_taken_and_more_is_413(tmp_path: Path) -> None:
    with amplitude(tmp_path) as server:
        assert server.post(*(event(n) for n in range(2000))).status_code == 200
        too_many = server.post(*(event(n) for n in range(2001)))
        assert (too_many.status_code, too_many.json()["error"]) == (413, "Payload too large")
        frame = len(server.post(event(1, padding="")).request.content)
        fits = server.post(event(1, padding="x" * (1_000_000 - frame)))
        assert (len(fits.request.content), fits.status_code) == (1_000_000, 200)
        assert server.post(event(1, padding="x" * (1_000_001 - frame))).status_code == 413


@pytest.mark.parametrize("kind", ["device_id", "user_id"])
def test_a_device_or_user_over_30_events_in_a_second_is_named_and_nothing_is_taken(
    server: Amplitude, kind: str
) -> None:
    busy = [event(n, **{kind: "the-busy-one"}) for n in range(31)]
    answer = server.post(event(100), *busy)
    assert answer.status_code == 429
    found = answer.json()
    assert found["eps_threshold"] == 30
    assert found[{"device_id": "throttled_devices", "user_id": "throttled_users"}[kind]] == {
        "the-busy-one": 31
    }
    assert found["throttled_events"] == list(range(1, 32))
    assert server.summary()["events"] == 0
    assert server.post(*busy[:30]).status_code == 200
    assert server.post(busy[30]).status_code == 429
    server.clock.now += 1.01
    assert server.post(busy[30]).status_code == 200


def test_an_insert_id_counts_once_per_device_for_seven_days(server: Amplitude) -> None:
    once = event(1)
    server.post(once, once)
    server.post(once)
    assert server.summary()["duplicates"] == 2
    server.post(event(1, device_id="another-device"))
    assert server.summary()["stored"] == 2
    server.clock.now += DEDUPLICATION_SECONDS - 1
    server.post(once)
    assert server.summary()["stored"] == 2
    server.clock.now += 2
    server.post(once)
    assert server.summary() | {"by_type": None} == {
        "events": 1,
        "stored": 3,
        "requests": 5,
        "duplicates": 3,
        "by_type": None,
    }


def test_events_without_an_insert_id_are_never_duplicates(server: Amplitude) -> None:
    server.post(event(1, insert_id=None), event(1, insert_id=None))
    assert server.summary()["stored"] == 2


def test_a_restart_remembers_what_was_received(tmp_path: Path) -> None:
    with amplitude(tmp_path) as first:
        first.post(event(1))
    with amplitude(tmp_path) as second:
        second.post(event(1), event(2))
        assert (second.summary()["stored"], second.summary()["duplicates"]) == (2, 1)
        assert second.summary()["requests"] == 2


@pytest.mark.parametrize(
    ("fault", "status", "stored"),
    [
        ("500", 500, 0),
        ("500_accepted", 500, 1),
        ("502_accepted", 502, 1),
        ("503", 503, 0),
        ("504_accepted", 504, 1),
        ("429", 429, 0),
    ],
)
def test_a_fault_answers_as_told_and_takes_the_events_only_where_it_says_so(
    tmp_path: Path, fault: str, status: int, stored: int
) -> None:
    faults = Faults(script=(fault,), retry_after="7")
    with amplitude(tmp_path, faults=faults) as server:
        answer = server.post(event(1))
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "7")
        assert server.summary()["stored"] == stored
        assert server.post(event(2)).status_code == 200


@pytest.mark.parametrize(("fault", "stored"), [("timeout", 0), ("timeout_accepted", 1)])
def test_a_timeout_keeps_the_client_waiting(tmp_path: Path, fault: str, stored: int) -> None:
    faults = Faults(script=(fault,), timeout_seconds=1)
    with amplitude(tmp_path, faults=faults) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.http.post("/2/httpapi", json={"api_key": KEY, "events": [event(1)]}, timeout=0.2)
        assert server.summary()["stored"] == stored


def test_a_reset_breaks_the_answer_off(tmp_path: Path) -> None:
    with amplitude(tmp_path, faults=Faults(script=("reset_accepted",))) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            server.post(event(1))
        assert server.summary()["stored"] == 1


def test_rates_of_faults_are_met(tmp_path: Path) -> None:
    faults = Faults(accepted_5xx_rate=0.3, unavailable_rate=0.2, seed=4)
    with amplitude(tmp_path, limit=None, faults=faults) as server:
        statuses = [server.post(event(n)).status_code for n in range(200)]
        taken = server.summary()["events"]
    unavailable = statuses.count(503)
    failed_but_taken = sum(status in (500, 502, 504) for status in statuses)
    assert 25 <= unavailable <= 60
    assert 40 <= failed_but_taken <= 80
    assert taken == 200 - unavailable


def test_faults_can_come_from_the_environment() -> None:
    faults = Faults.from_environment({"AMPLITUDE_SERVER_THROTTLE_RATE": "0.05"})
    assert faults == replace(Faults(), throttle_rate=0.05)
    with pytest.raises(TelemetryError, match="AMPLITUDE_SERVER_THROTTLE_RATE"):
        Faults.from_environment({"AMPLITUDE_SERVER_THROTTLE_RATE": "often"})


def test_a_silenced_device_is_named(tmp_path: Path) -> None:
    faults = Faults(silenced_devices=frozenset({"device-2"}))
    with amplitude(tmp_path, faults=faults) as server:
        answer = server.post(event(1), event(2)).json()
    assert (answer["silenced_devices"], answer["silenced_events"]) == (["device-2"], [1])


class Page(html.parser.HTMLParser):
    """Text of a page, and every address it would make a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name == "src" or (name == "href" and tag != "a"):
                self.fetched.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_lists_what_was_received_escaped_and_fetches_nothing(server: Amplitude) -> None:
    evil = "<img src=x onerror=alert(1)>"
    server.post(
        event(
            1,
            event_type=evil,
            groups={"organisation": "org-77"},
            event_properties={"plan": "startup & co"},
        )
    )
    answer = server.http.get("/")
    page = Page()
    page.feed(answer.text)
    text = " ".join(page.text)
    for shown in (evil, "user-1", "organisation org-77", "startup & co", "insert-1"):
        assert shown in text
    assert page.fetched == []
    assert not page.tags & {"script", "img", "iframe"}
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert KEY not in answer.text


def test_the_empty_page_says_so(server: Amplitude) -> None:
    assert "nothing yet" in server.http.get("/").text


def test_the_limit_of_the_list_is_checked(server: Amplitude) -> None:
    server.post(*(event(n) for n in range(5)))
    assert len(server.http.get("/received?limit=3").json()) == 3
    for wrong in ("0", "-1", "many", "100001", "²"):
        assert server.http.get("/received", params={"limit": wrong}).status_code == 400


def test_another_host_name_is_refused(server: Amplitude) -> None:
    assert server.http.get("/received", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com"])
def test_it_listens_on_loopback_only(tmp_path: Path, host: str) -> None:
    with pytest.raises(TelemetryError):
        serve(host, 0, tmp_path, KEY)


def test_a_missing_key_or_a_used_port_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match="AMPLITUDE_API_KEY"):
        serve("127.0.0.1", 0, tmp_path, "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TelemetryError, match=f"127.0.0.1:{port}: Address already in use"):
            serve("127.0.0.1", port, tmp_path, KEY)


def test_the_process_takes_its_key_from_the_environment_and_ends_on_sigterm(
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "telemetry_pipeline.demo.amplitude_server"),
            *("--port", str(port), "--state-dir", tmp_path),
        ],
        env={**os.environ, "AMPLITUDE_API_KEY": KEY},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            _wait_until_up(http)
            body = {"api_key": KEY, "events": [event(1)]}
            assert http.post("/2/httpapi", json=body).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait(5)
    with amplitude(tmp_path) as again:
        assert again.summary()["events"] == 1


def _wait_until_up(http: httpx.Client) -> None:
    ends = time.monotonic() + 20
    while True:
        try:
            http.get("/received/summary")
            return
        except httpx.ConnectError:
            assert time.monotonic() < ends, "the server did not start"
            time.sleep(0.05)
