"""What every destination is: how an event is mapped, what the limits are, what an answer means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from telemetry_pipeline.errors import TelemetryError


class DestinationError(TelemetryError):
    """A destination cannot be used as configured. Its text shows no key and no personal value."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """An event as a destination may know it: only ids of the destination's own, no pseudonym.

    `time_ms` is milliseconds since 1970 UTC; `payload_json` a JSON object. A subject that the
    event does not have is None.
    """

    insert_id: str
    event_type: str
    time_ms: int
    device_id: str
    user_id: str | None
    organisation_id: str | None
    schema_version: str
    route_pattern: str | None
    payload_json: str


@dataclass(frozen=True, slots=True)
class WireEvent:
    """A mapped event: `body` is its JSON as it goes into a request."""

    insert_id: str
    device_id: str
    user_id: str | None
    body: bytes = field(repr=False)

    @property
    def subject(self) -> str:
        """Whom the destination's rate limit counts this event for."""
        return self.user_id or self.device_id


@dataclass(frozen=True, slots=True)
class Refusal:
    """An event that the destination would reject; `reason` is a short code without any value."""

    reason: str


@dataclass(frozen=True)
class Limits:
    """What one request and one second may hold. None means no limit."""

    events_per_request: int
    bytes_per_request: int
    events_per_second: int | None
    subject_events_per_second: int | None


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. `retry_after` is the header's seconds, when it was there."""

    status: int
    body: bytes = field(repr=False)
    retry_after: float | None = None


@dataclass(frozen=True)
class NoAnswer:
    """Nothing came back. Unless the request never left, the events may have been taken."""

    reason: str
    left: bool = True


# -- what an answer means ---------------------------------------------------------------------


@dataclass(frozen=True)
class Accepted:
    """Every event of the request is at the destination."""


@dataclass(frozen=True)
class RefusedSome:
    """Nothing was taken; without the events at these indices, each with its reason, it can be."""

    reasons: Mapping[int, str]


@dataclass(frozen=True)
class Throttled:
    """Nothing was taken; these subjects must pause, the others need not.

    `exhausted` have no quota left today. Without any subject the whole project must pause.
    """

    subjects: frozenset[str]
    exhausted: frozenset[str]
    retry_after: float | None = None


@dataclass(frozen=True)
class TooLarge:
    """The request was too big; nothing was taken."""


@dataclass(frozen=True)
class TryAgain:
    """The destination failed; with `in_doubt` it may have taken the events all the same."""

    reason: str
    in_doubt: bool
    retry_after: float | None = None


@dataclass(frozen=True)
class Stop:
    """No request can succeed until a person mends `problem`."""

    problem: str


Verdict = Accepted | RefusedSome | Throttled | TooLarge | TryAgain | Stop


class Destination(Protocol):
    """map and interpret decide and touch nothing; only send leaves the machine."""

    @property
    def limits(self) -> Limits: ...

    @property
    def request_timeout(self) -> float:
        """Seconds after which a request has been given up, whatever it was waiting for."""
        ...

    @property
    def request_overhead(self) -> int:
        """Bytes of a request beside its events' bodies and the commas between them."""
        ...

    def map(self, event: OutgoingEvent) -> WireEvent | Refusal: ...

    def send(self, events: Sequence[WireEvent]) -> Answer | NoAnswer: ...

    def interpret(self, answer: Answer | NoAnswer, events: Sequence[WireEvent]) -> Verdict: ...
