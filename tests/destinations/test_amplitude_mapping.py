"""What an event looks like to Amplitude, and which events never get that far."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from telemetry_pipeline.destinations.amplitude import (
    ENDPOINTS,
    Amplitude,
    AmplitudeSettings,
    parse_retry_after,
    request_body,
    to_wire,
)
from telemetry_pipeline.destinations.base import (
    Accepted,
    Answer,
    DestinationError,
    NoAnswer,
    OutgoingEvent,
    Refusal,
    RefusedSome,
    Stop,
    Throttled,
    TooLarge,
    TryAgain,
    Verdict,
    WireEvent,
)

SETTINGS = AmplitudeSettings(api_key="a-key-of-the-tests")
EVENT = OutgoingEvent(
    insert_id="1" * 32,
    event_type="change_request.created",
    time_ms=1_790_000_000_123,
    device_id="d" * 32,
    user_id="u" * 32,
    organisation_id="e" * 32,
    schema_version="2026-05-telemetry-v1",
    route_pattern="/projects/:projectId",
    payload_json='{"approvals":2,"delayHours":12.5,"flagChangeRequests":true,"plan":"startup"}',
)


def wired(event: OutgoingEvent, settings: AmplitudeSettings = SETTINGS) -> dict[str, object]:
    mapped = to_wire(event, settings)
    assert isinstance(mapped, WireEvent), mapped
    document = json.loads(mapped.body)
    assert isinstance(document, dict)
    return document


def test_an_event_carries_its_ids_time_payload_and_nothing_else() -> None:
    assert wired(EVENT) == {
        "event_type": "change_request.created",
        "insert_id": "1" * 32,
        "device_id": "d" * 32,
        "user_id": "u" * 32,
        "time": 1_790_000_000_123,
        "groups": {"organisation": "e" * 32},
        "event_properties": {
            "approvals": 2,
            "delayHours": 12.5,
            "flagChangeRequests": True,
            "plan": "startup",
            "schema_version": "2026-05-telemetry-v1",
            "route_pattern": "/projects/:projectId",
        },
    }


def test_numbers_stay_numbers_however_large() -> None:
    event = replace(EVENT, payload_json='{"a":18446744073709551616,"b":1.0,"c":[1,{"d":false}]}')
    assert b'"a":18446744073709551616,"b":1.0,"c":[1,{"d":false}]' in _body(event)


def test_what_is_absent_is_left_out() -> None:
    bare = replace(EVENT, user_id=None, organisation_id=None, route_pattern=None, payload_json="{}")
    assert set(wired(bare)) == {"event_type", "insert_id", "device_id", "time", "event_properties"}
    assert wired(bare)["event_properties"] == {"schema_version": "2026-05-telemetry-v1"}


def test_long_strings_are_cut_to_1024_characters_at_any_depth() -> None:
    event = replace(EVENT, payload_json=json.dumps({"a": "é" * 1025, "b": [{"c": "x" * 5000}]}))
    properties = wired(event)["event_properties"]
    assert isinstance(properties, dict)
    assert properties["a"] == "é" * 1024
    assert properties["b"] == [{"c": "x" * 1024}]


def test_values_that_json_or_utf8_cannot_hold_do_not_break_a_request() -> None:
    event = replace(EVENT, payload_json='{"a":NaN,"b":-Infinity,"c":"\\ud800"}')
    properties = wired(event)["event_properties"]
    assert isinstance(properties, dict)
    assert (properties["a"], properties["b"], properties["c"]) == (None, None, "?")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"event_type": ""}, "rejected:event_type"),
        ({"event_type": "x" * 1025}, "rejected:event_type"),
        ({"device_id": "abcd"}, "rejected:device_id"),
        ({"user_id": "abcd"}, "rejected:user_id"),
        ({"user_id": "Anonymous"}, "rejected:user_id"),
        ({"user_id": "undefined"}, "rejected:user_id"),
        ({"device_id": "00000000-0000-0000-0000-000000000000"}, "rejected:device_id"),
        ({"payload_json": "not json"}, "rejected:payload_unreadable"),
        ({"payload_json": "[1]"}, "rejected:payload_unreadable"),
        ({"payload_json": '{"a":' * 41 + "1" + "}" * 41}, "rejected:payload_too_deep"),
        (
            {"payload_json": json.dumps({str(n): "x" * 1024 for n in range(1000)})},
            "rejected:event_too_large",
        ),
    ],
)
def test_what_amplitude_would_reject_is_caught_beforehand(
    change: dict[str, str], reason: str
) -> None:
    assert to_wire(replace(EVENT, **change), SETTINGS) == Refusal(reason)  # type: ignore[arg-type]


def test_the_minimum_id_length_is_a_setting_and_travels_with_the_request() -> None:
    settings = replace(SETTINGS, min_id_length=3)
    mapped = to_wire(replace(EVENT, user_id="abc"), settings)
    assert isinstance(mapped, WireEvent)
    assert json.loads(request_body([mapped], settings))["options"] == {"min_id_length": 3}


def test_the_announced_overhead_is_exact() -> None:
    with Amplitude(SETTINGS) as amplitude:
        mapped = amplitude.map(EVENT)
        assert isinstance(mapped, WireEvent)
        size = len(request_body([mapped, mapped], SETTINGS))
        assert size == amplitude.request_overhead + 2 * len(mapped.body) + 1


@pytest.mark.parametrize(
    "endpoint", ["http://api2.amplitude.com/2/httpapi", "ftp://127.0.0.1/", "api2.amplitude.com"]
)
def test_an_endpoint_that_would_send_in_clear_is_refused(endpoint: str) -> None:
    with pytest.raises(DestinationError):
        AmplitudeSettings(api_key="a-key", endpoint=endpoint)


def test_both_regions_and_a_local_server_are_possible() -> None:
    for endpoint in (*ENDPOINTS.values(), "http://127.0.0.1:8091/2/httpapi"):
        AmplitudeSettings(api_key="a-key", endpoint=endpoint)


def test_the_settings_never_show_the_key() -> None:
    assert "a-key-of-the-tests" not in repr(SETTINGS)
    with pytest.raises(DestinationError, match="empty"):
        AmplitudeSettings(api_key="")


def _body(event: OutgoingEvent) -> bytes:
    mapped = to_wire(event, SETTINGS)
    assert isinstance(mapped, WireEvent)
    return mapped.body


EVENTS = [WireEvent(str(n), f"device-{n}", f"user-{n}", b"{}") for n in range(4)]


def _json(status: int, body: dict[str, object], retry_after: float | None = None) -> Answer:
    return Answer(status, json.dumps({"code": status, **body}).encode(), retry_after)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (_json(200, {"events_ingested": 4}), Accepted()),
        (
            _json(400, {"events_with_missing_fields": {"event_type": [1]}}),
            RefusedSome({1: "missing_field:event_type"}),
        ),
        (
            _json(400, {"events_with_invalid_fields": {"time": [3], "user_id": [0]}}),
            RefusedSome({3: "invalid_field:time", 0: "invalid_field:user_id"}),
        ),
        (
            _json(400, {"events_with_invalid_id_lengths": {"user_id": [2]}}),
            RefusedSome({2: "invalid_id_length:user_id"}),
        ),
        (
            _json(400, {"silenced_events": [0], "silenced_devices": ["device-3"]}),
            RefusedSome({0: "silenced_device", 3: "silenced_device"}),
        ),
        (
            _json(400, {"events_with_invalid_fields": {"an id 77": [1], "time": [99, -1, True]}}),
            RefusedSome({1: "invalid_field:other"}),
        ),
        (
            _json(429, {"throttled_devices": {"device-1": 31}, "throttled_users": {"user-2": 40}}),
            Throttled(frozenset({"device-1", "user-2"}), frozenset()),
        ),
        (
            _json(429, {"exceeded_daily_quota_devices": {"device-1": 500_001}}, 7.0),
            Throttled(frozenset(), frozenset({"device-1"}), 7.0),
        ),
        (_json(429, {}), Throttled(frozenset(), frozenset())),
        (_json(413, {"error": "Payload too large"}), TooLarge()),
        (_json(500, {}), TryAgain("http_500", in_doubt=True)),
        (_json(502, {}), TryAgain("http_502", in_doubt=True)),
        (_json(503, {}, 3.0), TryAgain("http_503", in_doubt=False, retry_after=3.0)),
        (_json(504, {}), TryAgain("http_504", in_doubt=True)),
        (Answer(408, b""), TryAgain("http_408", in_doubt=True)),
        (NoAnswer("timeout"), TryAgain("timeout", in_doubt=True)),
        (NoAnswer("cannot_connect", left=False), TryAgain("cannot_connect", in_doubt=False)),
    ],
)
def test_each_documented_answer_has_one_meaning(
    answer: Answer | NoAnswer, verdict: Verdict
) -> None:
    with Amplitude(SETTINGS) as amplitude:
        assert amplitude.interpret(answer, EVENTS) == verdict


@pytest.mark.parametrize(
    "answer",
    [
        _json(400, {"error": "Invalid API key: a-key-of-the-tests"}),
        _json(400, {"error": "Request missing required field", "missing_field": "api_key"}),
        _json(400, {"error": "a text with u-77 in it"}),
        Answer(400, b"<html>u-77</html>"),
        Answer(403, b"u-77"),
        Answer(301, b"u-77"),
    ],
)
def test_an_answer_that_only_a_person_can_mend_stops_without_repeating_its_text(
    answer: Answer,
) -> None:
    with Amplitude(SETTINGS) as amplitude:
        verdict = amplitude.interpret(answer, EVENTS)
    assert isinstance(verdict, Stop)
    assert "a-key-of-the-tests" not in verdict.problem
    assert "u-77" not in verdict.problem


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12.0),
        ("Mon, 02 Nov 2026 10:00:30 GMT", 30.0),
        ("Mon, 02 Nov 2026 09:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(
    value: str | None, seconds: float | None
) -> None:
    assert parse_retry_after(value, lambda: datetime(2026, 11, 2, 10, tzinfo=UTC)) == seconds


def test_the_mapping_and_sending_need_neither_dagster_nor_clickhouse() -> None:
    code = (
        "import sys, telemetry_pipeline.destinations.amplitude; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('dagster', 'clickhouse_connect', 'chdb', 'dbt')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
