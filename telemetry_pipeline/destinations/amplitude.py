"""Amplitude's HTTP V2 API: mapping, sending, and what each documented answer means.

Usable alone, with neither Dagster nor ClickHouse:

    amplitude = Amplitude(AmplitudeSettings(endpoint=ENDPOINTS["eu"], api_key=key))
    wire = amplitude.map(OutgoingEvent(...))
    verdict = amplitude.interpret(amplitude.send([wire]), [wire])
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx

from telemetry_pipeline.destinations.base import (
    Accepted,
    Answer,
    DestinationError,
    Limits,
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

ENDPOINTS: Mapping[str, str] = {
    "us": "https://api2.amplitude.com/2/httpapi",
    "eu": "https://api.eu.amplitude.com/2/httpapi",
}
MAX_STRING_LENGTH = 1024  # characters
MAX_DEPTH = 40
MAX_ANSWER_BYTES = 4_000_000

# Ids that Amplitude rejects whatever their length, because an instrumentation error sends them.
REJECTED_IDS = frozenset(
    {
        *("anonymous", "nil", "none", "null", "n/a", "na", "undefined", "unknown"),
        *("true", "false", "{}", "[]", "0", "-1", "00000000-0000-0000-0000-000000000000"),
    }
)

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class AmplitudeSettings:
    """How to reach one Amplitude project.

    `events_per_second` and `device_events_per_second` stay below Amplitude's limits (1,000 for the
    Starter plan, 30 for one device or user); None sends as fast as the other side takes.
    Raises DestinationError for an endpoint or a key that cannot work.
    """

    api_key: str = field(repr=False)
    endpoint: str = ENDPOINTS["us"]
    min_id_length: int = 5
    events_per_second: int | None = 1000
    device_events_per_second: int | None = 25
    events_per_request: int = 2000
    bytes_per_request: int = 1_000_000
    timeout_seconds: float = 30.0
    group_type: str = "organisation"

    def __post_init__(self) -> None:
        if not self.api_key:
            raise DestinationError("amplitude: the API key is empty; set the variable it refers to")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DestinationError("amplitude: endpoint must be an http(s) address")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise DestinationError(
                "amplitude: endpoint must be https, or the API key would travel in clear"
            )


def to_wire(event: OutgoingEvent, settings: AmplitudeSettings) -> WireEvent | Refusal:
    """The event as Amplitude's JSON, or why Amplitude would reject it.

    Numbers and booleans keep their type; strings are cut to 1,024 characters. Beside the ids, the
    type and the time, only the payload's fields, route_pattern and schema_version are in it.
    """
    if not event.event_type or len(event.event_type) > MAX_STRING_LENGTH:
        return Refusal("rejected:event_type")
    for field_name, value in (("device_id", event.device_id), ("user_id", event.user_id)):
        if value is not None and not _is_acceptable_id(value, settings.min_id_length):
            return Refusal(f"rejected:{field_name}")
    try:
        # Amplitude's JSON has no NaN and no infinity.
        payload = json.loads(event.payload_json, parse_constant=lambda _: None)
    except ValueError:
        return Refusal("rejected:payload_unreadable")
    if not isinstance(payload, dict):
        return Refusal("rejected:payload_unreadable")
    if _depth_exceeds(payload, MAX_DEPTH - 1):
        return Refusal("rejected:payload_too_deep")
    properties = {_cut(key): _cut_strings(value) for key, value in payload.items()}
    properties["schema_version"] = _cut(event.schema_version)
    if event.route_pattern is not None:
        properties["route_pattern"] = _cut(event.route_pattern)
    body: dict[str, Json] = {
        "event_type": event.event_type,
        "insert_id": event.insert_id,
        "device_id": event.device_id,
        "time": event.time_ms,
        "event_properties": properties,
    }
    if event.user_id is not None:
        body["user_id"] = event.user_id
    if event.organisation_id is not None:
        body["groups"] = {settings.group_type: event.organisation_id}
    # A lone surrogate is valid in JSON's escapes and in no UTF-8.
    encoded = _ENCODER.encode(body).encode(errors="replace")
    if len(encoded) + _overhead(settings) > settings.bytes_per_request:
        return Refusal("rejected:event_too_large")
    return WireEvent(event.insert_id, event.device_id, event.user_id, encoded)


def request_body(events: Sequence[WireEvent], settings: AmplitudeSettings) -> bytes:
    """The whole request: API key, options and the events."""
    head, tail = _envelope(settings)
    return head + b",".join(event.body for event in events) + tail


def interpret(answer: Answer | NoAnswer, events: Sequence[WireEvent]) -> Verdict:
    """What Amplitude's answer to `events` asks for. Free text of an answer is never passed on."""
    if isinstance(answer, NoAnswer):
        return TryAgain(answer.reason, in_doubt=answer.left)
    if answer.status == 200:
        return Accepted()
    if answer.status == 413:
        return TooLarge()
    if answer.status == 408 or answer.status >= 500:
        # 503 says that nothing was taken; the others do not say.
        in_doubt = answer.status != 503
        return TryAgain(f"http_{answer.status}", in_doubt, answer.retry_after)
    document = _object(answer.body)
    if answer.status == 429:
        return _throttled(document, answer.retry_after)
    if answer.status == 400:
        return _refused(document, events)
    return Stop(f"answered {answer.status}; check the endpoint and that this host may reach it")


class Amplitude:
    """A destination (see base.Destination) that sends over one kept-alive HTTP connection."""

    def __init__(self, settings: AmplitudeSettings) -> None:
        self.settings = settings
        # A proxy from the environment must not get what is meant for this machine.
        loopback = _is_loopback(urlsplit(settings.endpoint).hostname or "")
        self._http = httpx.Client(
            timeout=httpx.Timeout(
                settings.timeout_seconds, connect=min(10, settings.timeout_seconds)
            ),
            follow_redirects=False,
            trust_env=not loopback,
            headers={"content-type": "application/json", "accept": "application/json"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @property
    def limits(self) -> Limits:
        return Limits(
            events_per_request=self.settings.events_per_request,
            bytes_per_request=self.settings.bytes_per_request,
            events_per_second=self.settings.events_per_second,
            subject_events_per_second=self.settings.device_events_per_second,
        )

    @property
    def request_timeout(self) -> float:
        # Connecting, writing and reading may each take the time a single wait is allowed.
        return 3 * self.settings.timeout_seconds

    @property
    def request_overhead(self) -> int:
        return _overhead(self.settings)

    def map(self, event: OutgoingEvent) -> WireEvent | Refusal:
        return to_wire(event, self.settings)

    def interpret(self, answer: Answer | NoAnswer, events: Sequence[WireEvent]) -> Verdict:
        return interpret(answer, events)

    def send(self, events: Sequence[WireEvent]) -> Answer | NoAnswer:
        """POST the events. Never raises for what the network or Amplitude does."""
        started = time.monotonic()
        try:
            with self._http.stream(
                "POST", self.settings.endpoint, content=request_body(events, self.settings)
            ) as response:
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    # httpx limits the wait for each part, not for all of them.
                    if time.monotonic() - started > self.settings.timeout_seconds:
                        return NoAnswer("timeout")
                    if len(body) > MAX_ANSWER_BYTES:
                        return NoAnswer("answer_too_large")
                retry_after = parse_retry_after(response.headers.get("retry-after"))
                return Answer(response.status_code, bytes(body), retry_after)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return NoAnswer("cannot_connect", left=False)
        except httpx.TimeoutException:
            return NoAnswer("timeout")
        except httpx.HTTPError:
            return NoAnswer("connection_lost")


def parse_retry_after(
    value: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date; None if not understood."""
    if not value:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now()).total_seconds())


# -- mapping ----------------------------------------------------------------------------------


def _is_acceptable_id(value: str, min_length: int) -> bool:
    return min_length <= len(value) <= MAX_STRING_LENGTH and value.lower() not in REJECTED_IDS


def _cut(text: str) -> str:
    return text if len(text) <= MAX_STRING_LENGTH else text[:MAX_STRING_LENGTH]


def _cut_strings(value: Json) -> Json:
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, list):
        return [_cut_strings(item) for item in value]
    if isinstance(value, dict):
        return {_cut(key): _cut_strings(item) for key, item in value.items()}
    return value


def _depth_exceeds(value: Json, limit: int) -> bool:
    # Level by level: a recursive walk would itself fail on what it is to find.
    level: list[Json] = [value]
    for _ in range(limit):
        below: list[Json] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return False
        level = below
    return any(isinstance(item, (dict, list)) for item in level)


def _envelope(settings: AmplitudeSettings) -> tuple[bytes, bytes]:
    head = {"api_key": settings.api_key, "options": {"min_id_length": settings.min_id_length}}
    return json.dumps(head, separators=(",", ":"))[:-1].encode() + b',"events":[', b"]}"


def _overhead(settings: AmplitudeSettings) -> int:
    head, tail = _envelope(settings)
    return len(head) + len(tail)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# -- answers ----------------------------------------------------------------------------------


def _object(body: bytes) -> dict[str, Json]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _throttled(document: dict[str, Json], retry_after: float | None) -> Throttled:
    subjects = {*_names(document, "throttled_devices"), *_names(document, "throttled_users")}
    exhausted = {
        *_names(document, "exceeded_daily_quota_devices"),
        *_names(document, "exceeded_daily_quota_users"),
    }
    return Throttled(frozenset(subjects - exhausted), frozenset(exhausted), retry_after)


def _refused(document: dict[str, Json], events: Sequence[WireEvent]) -> Verdict:
    reasons: dict[int, str] = {}
    for kind, code in (
        ("events_with_missing_fields", "missing_field"),
        ("events_with_invalid_fields", "invalid_field"),
        ("events_with_invalid_id_lengths", "invalid_id_length"),
    ):
        by_field = document.get(kind)
        if isinstance(by_field, dict):
            for field_name, indices in by_field.items():
                for index in _indices(indices, len(events)):
                    reasons.setdefault(index, f"{code}:{_field_name(field_name)}")
    silenced = set(_names(document, "silenced_devices"))
    for index in _indices(document.get("silenced_events"), len(events)):
        reasons.setdefault(index, "silenced_device")
    for index, event in enumerate(events):
        if event.device_id in silenced:
            reasons.setdefault(index, "silenced_device")
    if reasons:
        return RefusedSome(reasons)
    error = document.get("error")
    if isinstance(error, str) and "api key" in error.lower():
        # Amplitude repeats the key in its text, so the text stays here.
        return Stop("the API key is not valid; check the variable that destinations refer to")
    missing = document.get("missing_field")
    if isinstance(missing, str):
        return Stop(f"the request lacks the field {_field_name(missing)}; nothing was taken")
    return Stop("the request was rejected (400) without naming an event; nothing was taken")


def _names(document: dict[str, Json], kind: str) -> Iterable[str]:
    # V2 gives an object of id: events per second; a list of ids is read the same way.
    found = document.get(kind)
    return (
        [item for item in found if isinstance(item, str)] if isinstance(found, (dict, list)) else []
    )


def _indices(value: Json, size: int) -> Iterable[int]:
    if not isinstance(value, list):
        return []
    return [item for item in value if type(item) is int and 0 <= item < size]


def _field_name(name: str) -> str:
    # A field's name only: anything else in its place could be a value.
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,63}", name) else "other"
