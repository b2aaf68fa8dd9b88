"""Every answer Amplitude documents, and what the exporter did about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from exporting import (
    API_KEY,
    NOON,
    PATIENT,
    Event,
    Receiver,
    Warehouse,
    export,
    export_through,
)

from telemetry_pipeline.destinations.amplitude import Amplitude, AmplitudeSettings
from telemetry_pipeline.destinations.base import (
    Answer,
    DestinationError,
    NoAnswer,
    Throttled,
    Verdict,
    WireEvent,
)

Server = Callable[..., AbstractContextManager[Receiver]]

USER = 0xDEADBEEF_12345678


@dataclass(frozen=True)
class Case:
    """10 events due; the answer to provoke; what must have happened afterwards."""

    answer: str
    faults: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    accepted: int = 10
    refused: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    requests: int = 1
    repeated: int = 0  # events that reached the server a second time and were recognised


CASES = [
    Case("200"),
    Case(
        "400 with events_with_invalid_fields: the named event is refused, the rest sent again",
        faults={"refused_event_types": frozenset({"change_request.failed"})},
        accepted=8,
        refused={"invalid_field:event_type": 2},
        requests=3,
    ),
    Case("413: halved until it fits", settings={"bytes_per_request": 3_000_000}, requests=3,
         retries={"http_413": 1}),
    Case("429 of the whole project: a pause, then all again", faults={"script": ("429",)},
         retries={"http_429": 1}, requests=2),
    Case("500, nothing taken", faults={"script": ("500",)}, retries={"http_500": 1}, requests=2),
    Case("500 that did accept", faults={"script": ("500_accepted",)}, retries={"http_500": 1},
         requests=2, repeated=10),
    Case("502 that did accept", faults={"script": ("502_accepted",)}, retries={"http_502": 1},
         requests=2, repeated=10),
    Case("503, nothing taken", faults={"script": ("503", "503")}, retries={"http_503": 2},
         requests=3),
    Case("504 that did accept", faults={"script": ("504_accepted",)}, retries={"http_504": 1},
         requests=2, repeated=10),
    Case("no answer in time, nothing taken", faults={"script": ("timeout",), "timeout_seconds": 1},
         settings={"timeout_seconds": 0.3}, retries={"timeout": 1}, requests=2),
    Case("no answer in time, but accepted",
         faults={"script": ("timeout_accepted",), "timeout_seconds": 1},
         settings={"timeout_seconds": 0.3}, retries={"timeout": 1}, requests=2, repeated=10),
    Case("an answer that breaks off, nothing taken", faults={"script": ("reset",)},
         retries={"connection_lost": 1}, requests=2),
    Case("an answer that breaks off, but accepted", faults={"script": ("reset_accepted",)},
         retries={"connection_lost": 1}, requests=2, repeated=10),
]  # fmt: skip


def ten_events(*, payload: dict[str, object] | None = None) -> list[Event]:
    names = ["change_request.created"] * 8 + ["change_request.failed"] * 2
    return [
        Event(name=name, user=USER + place, payload=payload or {}, occurred_at=NOON)
        for place, name in enumerate(names)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.answer)
def test_after_every_answer_each_event_is_there_once_or_refused_with_a_reason(
    case: Case, warehouse: Warehouse, amplitude_server: Server
) -> None:
    # 10 events of 150 kB are more than a request may hold.
    big = {f"k{n}": "x" * 1000 for n in range(150)} if "413" in case.answer else {}
    warehouse.land(ten_events(payload=dict(big)))
    policy = replace(PATIENT, throttle_pause=0.1)
    with amplitude_server(**case.faults) as receiver:
        report = export(warehouse, receiver, policy=policy, **case.settings)
        summary = receiver.summary()
    assert report.accepted == summary["events"] == summary["stored"] == case.accepted
    assert dict(report.refused) == dict(case.refused)
    assert (report.waiting, report.stopped) == (0, None)
    assert dict(report.retries) == dict(case.retries)
    assert report.requests == summary["requests"] == case.requests
    assert summary["duplicates"] == case.repeated
    expected = {"accepted": case.accepted, "refused": sum(case.refused.values())}
    assert warehouse.states() == {state: count for state, count in expected.items() if count}


def test_the_events_of_a_silenced_device_are_refused_and_the_others_sent(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land(ten_events())
    with amplitude_server() as receiver:
        export(warehouse, receiver)
        first = receiver.events()[0]["device_id"]
    warehouse.land(ten_events(), batch_id=2)
    with amplitude_server(silenced_devices=frozenset({first})) as receiver:
        report = export(warehouse, receiver)
    assert (report.accepted, dict(report.refused)) == (9, {"silenced_device": 1})


def test_a_throttled_user_pauses_and_the_others_go_on(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    busy = [Event(user=USER, occurred_at=NOON + timedelta(seconds=n)) for n in range(45)]
    calm = [Event(user=USER + n) for n in range(1, 60)]
    warehouse.land([*busy, *calm])
    # 30 events in 3 seconds: 25 of the busy user fit, the next 20 do not.
    with amplitude_server(events_per_second=10, throttle_window=3) as receiver:
        started = time.monotonic()
        report = export(warehouse, receiver, events_per_request=25)
        took = time.monotonic() - started
        events = receiver.events()
    assert (report.accepted, report.waiting) == (104, 0)
    assert report.retries["http_429"] >= 1
    assert took > PATIENT.throttle_pause
    (user,) = {u for u in (e["user_id"] for e in events) if _count(events, u) == 45}
    assert all(event["user_id"] == user for event in events[-20:])


def _count(events: list[dict[str, object]], user: object) -> int:
    return sum(event["user_id"] == user for event in events)


def test_with_the_default_pace_nobody_is_throttled(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER + n % 3) for n in range(150)])
    with amplitude_server(events_per_second=30) as receiver:
        report = export(warehouse, receiver, device_events_per_second=25)
    assert (report.accepted, dict(report.retries)) == (150, {})
    assert report.seconds > 1


def test_a_throttle_that_names_nobody_in_the_request_does_not_spin(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land(ten_events())

    class ThrottledForAStranger(Amplitude):
        def interpret(self, answer: Answer | NoAnswer, events: Sequence[WireEvent]) -> Verdict:
            return Throttled(frozenset({"a-stranger"}), frozenset())

    with amplitude_server() as receiver:
        settings = AmplitudeSettings(api_key=API_KEY, endpoint=receiver.endpoint)
        with ThrottledForAStranger(settings) as amplitude:
            policy = replace(PATIENT, failures_before_stop=2, throttle_pause=0.2)
            report = export_through(warehouse, amplitude, policy=policy)
    assert (report.requests, report.waiting) == (2, 10)
    assert report.seconds >= policy.throttle_pause


def test_who_has_no_quota_left_waits_for_another_run_and_the_others_go(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land(ten_events())

    class QuotaOfTheFirst(Amplitude):
        over: frozenset[str] = frozenset()

        def interpret(self, answer: Answer | NoAnswer, events: Sequence[WireEvent]) -> Verdict:
            if self.over:
                return super().interpret(answer, events)
            self.over = frozenset({events[0].device_id})
            return Throttled(frozenset(), self.over)

    with amplitude_server() as receiver:
        settings = AmplitudeSettings(api_key=API_KEY, endpoint=receiver.endpoint)
        with QuotaOfTheFirst(settings) as amplitude:
            report = export_through(warehouse, amplitude)
        assert (report.accepted, report.waiting, report.stopped) == (9, 1, None)
        # Its day must not count as done.
        assert export(warehouse, receiver).accepted == 1


def test_retry_after_is_obeyed(warehouse: Warehouse, amplitude_server: Server) -> None:
    warehouse.land(ten_events())
    with amplitude_server(script=("503",), retry_after="1") as receiver:
        report = export(warehouse, receiver)
    assert report.accepted == 10
    assert report.seconds >= 1


def test_a_wrong_key_stops_at_once_shows_no_key_and_loses_nothing(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land(ten_events())
    with amplitude_server() as receiver:
        with pytest.raises(DestinationError, match="API key is not valid") as caught:
            export(warehouse, receiver, api_key="another-key-of-mine")
        assert "another-key-of-mine" not in str(caught.value)
        assert warehouse.states() == {"returned": 10}
        assert warehouse.rows("SELECT max(in_doubt_since) = 0 FROM ops.export_outbox FINAL") == [
            (1,)
        ]
        assert export(warehouse, receiver).accepted == 10
        assert receiver.summary()["duplicates"] == 0


def test_an_event_too_large_for_any_request_is_refused_and_does_not_block_the_others(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    huge = Event(user=USER, payload={f"k{n}": "x" * 1000 for n in range(1200)})
    warehouse.land([huge, Event(user=USER + 1)])
    with amplitude_server() as receiver:
        report = export(warehouse, receiver)
        assert (report.accepted, dict(report.refused)) == (1, {"rejected:event_too_large": 1})
        assert export(warehouse, receiver).due == 0

    warehouse.land([replace(huge, event_id=Event().event_id)], batch_id=2)
    with amplitude_server() as receiver:
        report = export(warehouse, receiver, bytes_per_request=3_000_000)
    assert dict(report.refused) == {"payload_too_large": 1}


def test_a_refused_event_is_never_sent_again(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER)])
    with amplitude_server(refused_event_types=frozenset({"change_request.created"})) as receiver:
        export(warehouse, receiver)
        warehouse.land([Event(user=USER, name="change_request.failed")], batch_id=2)
        report = export(warehouse, receiver)
        assert (report.due, report.accepted) == (1, 1)
    refused = "SELECT toString(state), reason FROM ops.export_outbox FINAL WHERE reason != ''"
    assert warehouse.rows(refused) == [("refused", "invalid_field:event_type")]


def test_a_destination_that_only_fails_is_given_up_and_everything_stays_due(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land(ten_events())
    with amplitude_server(unavailable_rate=1.0) as receiver:
        policy = replace(PATIENT, failures_before_stop=3)
        report = export(warehouse, receiver, policy=policy)
    assert (report.accepted, report.waiting, report.requests) == (0, 10, 3)
    assert report.stopped == "the destination fails: http_503, 3 times in a row"
    with amplitude_server() as receiver:
        assert export(warehouse, receiver).accepted == 10


def test_a_server_that_is_not_there_leaves_everything_due(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land(ten_events())
    with amplitude_server() as receiver:
        pass
    report = export(warehouse, receiver, policy=replace(PATIENT, failures_before_stop=2))
    assert (report.waiting, dict(report.retries)) == (10, {"cannot_connect": 2})
    assert warehouse.states() == {"returned": 10}


def test_a_run_ends_in_time_and_the_rest_stays_due(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land(ten_events())
    with amplitude_server() as receiver:
        policy = replace(PATIENT, max_seconds=3)
        report = export(warehouse, receiver, policy=policy, events_per_second=2)
        assert report.stopped == "time is up"
        assert report.seconds < 5
        assert report.accepted + report.waiting == 10
        assert 0 < report.accepted < 10
        assert export(warehouse, receiver).accepted == report.waiting
        assert receiver.summary()["duplicates"] == 0


def test_no_request_is_over_the_documented_size(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER + n, payload={"a": "x" * 900}) for n in range(4500)])
    with amplitude_server() as receiver:
        report = export(warehouse, receiver)
        assert receiver.summary()["stored"] == 4500
    # The server would have answered 413 for more than 2,000 events or 1 MB.
    assert dict(report.retries) == {}
    assert report.bytes / report.requests <= 1_000_000
    assert report.requests >= report.bytes / 1_000_000
    assert API_KEY not in repr(report)
