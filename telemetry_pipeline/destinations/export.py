"""One export run: select what is due, check it, freeze it, send it, record what came of it.

At least once on the wire, exactly once at the destination:

| killed …                                  | outbox says | next run                              |
|-------------------------------------------|-------------|---------------------------------------|
| before 'sending' is written               | nothing     | sends                                 |
| after 'sending', before the request       | sending     | sends the frozen values               |
| after the request, before its answer      | sending     | sends the frozen values; recognised   |
| after the answer, before it is recorded   | sending     | sends the frozen values; recognised   |
| after it is recorded                      | accepted    | does nothing                          |

"Recognised": the destination knows the insert_id on that device and drops the second copy.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.destinations.base import (
    Accepted,
    Destination,
    DestinationError,
    OutgoingEvent,
    Refusal,
    RefusedSome,
    Stop,
    Throttled,
    TooLarge,
    TryAgain,
    WireEvent,
)
from telemetry_pipeline.destinations.objections import Objections
from telemetry_pipeline.destinations.outbox import (
    DueDay,
    DueEvent,
    Entry,
    Frozen,
    Outbox,
    State,
    due_in_total,
)
from telemetry_pipeline.destinations.pacing import Pacer

KEY_BYTES = 32
ID_HEX_DIGITS = 32


@dataclass(frozen=True)
class ExportPolicy:
    """How long a run may take and how patient it is; all times in seconds.

    `max_seconds`: no request starts later; what is left stays due.
    `events_per_part`: how many events are held in memory at once.
    `throttle_pause`: for a throttled device or user (Amplitude asks for 30).
    `first_backoff`, `longest_backoff`: after a failure, doubled each time, with jitter.
    `failures_before_stop`: failed requests in a row after which the run gives up.
    """

    max_seconds: float = 300.0
    events_per_part: int = 50_000
    throttle_pause: float = 30.0
    first_backoff: float = 0.5
    longest_backoff: float = 30.0
    failures_before_stop: int = 8


@dataclass(frozen=True)
class ExportReport:
    """What a run did. All are numbers of distinct events but these: `sent` counts events on the
    wire with every repetition, `resent` the repetitions among them, `requests` and `bytes` what
    left. `due` = accepted + sum(refused) + withheld at the moment of sending + waiting.
    `withheld`: reason (consent, erasure, in_doubt) to events, those not counted as due included.
    `stopped`: why the run ended before everything was tried, else None.
    """

    due: int = 0
    sent: int = 0
    resent: int = 0
    accepted: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    waiting: int = 0
    withheld: Mapping[str, int] = field(default_factory=dict)
    requests: int = 0
    bytes: int = 0
    retries: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: str | None = None

    @property
    def withheld_by_consent(self) -> int:
        return self.withheld.get("consent", 0)

    @property
    def withheld_by_erasure(self) -> int:
        return self.withheld.get("erasure", 0)


def export_once(
    client: Client,
    destination: Destination,
    *,
    name: str,
    globs: Sequence[str],
    insert_key: bytes,
    policy: ExportPolicy | None = None,
) -> ExportReport:
    """Send what is due at `destination`, called `name` in telemetry.yaml.

    `globs`: the allowlist of event names; empty exports nothing. `insert_key`: this destination's
    own 32 bytes, never changed. Raises DestinationError when no request can succeed until a person
    acts (nothing is marked, all of it stays due), and what the warehouse's client raises.
    """
    if len(insert_key) != KEY_BYTES:
        raise DestinationError(f"{name}: its insert key must have {KEY_BYTES} bytes")
    if not globs:
        return ExportReport()
    run = _Run(client, destination, name, globs, insert_key, policy or ExportPolicy())
    try:
        return run.export()
    finally:
        # What is known by now is kept, whatever ended the run.
        run.outbox.flush()


def amplitude_due(client: Client, destination: str, globs: Sequence[str]) -> int:
    """Distinct events that should be at the destination in total: exported already, or due."""
    return due_in_total(client, destination, globs)


def insert_id(key: bytes, event_id: UUID) -> str:
    """The event's id at the destination: 32 hex digits of HMAC-SHA256(key, event_id as text)."""
    return hmac.digest(key, str(event_id).encode(), hashlib.sha256).hex()[:ID_HEX_DIGITS]


def lone_device_id(key: bytes, event_id: UUID) -> str:
    """A device id for an event that has no subject, derived so that a second send repeats it."""
    return hmac.digest(key, b"device:" + str(event_id).encode(), hashlib.sha256).hex()[
        :ID_HEX_DIGITS
    ]


def freeze(event: DueEvent, key: bytes) -> Frozen:
    """What the event is called at the destination: as at its first send, if there was one."""
    if event.frozen is not None:
        return event.frozen
    return Frozen(
        insert_id=insert_id(key, event.event_id),
        device_id=event.user_id or lone_device_id(key, event.event_id),
        user_id=event.user_id,
        organisation_id=event.organisation_id,
        occurred_ms=event.occurred_ms,
    )


def outgoing(event: DueEvent, frozen: Frozen) -> OutgoingEvent:
    """The event without anything of ours: this is all a destination's mapping gets to see."""
    return OutgoingEvent(
        insert_id=frozen.insert_id,
        event_type=event.name,
        time_ms=frozen.occurred_ms,
        device_id=frozen.device_id,
        user_id=frozen.user_id or None,
        organisation_id=frozen.organisation_id or None,
        schema_version=event.schema_version,
        route_pattern=event.route_pattern,
        payload_json=event.payload_json,
    )


@dataclass(slots=True)
class _Pending:
    """A selected event on its way. `in_doubt_since`: its first send without a clear answer."""

    event: DueEvent
    frozen: Frozen
    in_doubt_since: datetime | None
    was_sent: bool


class _Run:
    def __init__(
        self,
        client: Client,
        destination: Destination,
        name: str,
        globs: Sequence[str],
        insert_key: bytes,
        policy: ExportPolicy,
    ) -> None:
        self.outbox = Outbox(client, name, globs)
        self._objections = Objections(client)
        self._destination = destination
        self._name = name
        self._key = insert_key
        self._policy = policy
        self._pacer = Pacer(destination.limits, destination.request_overhead)
        self._pending: dict[str, _Pending] = {}  # by insert_id
        self._started = time.monotonic()
        self._failures = 0
        self._stopped: str | None = None
        self._left_over: list[DueEvent] = []  # events that got no id in time
        self._due = self._accepted = self._sent = self._resent = self._requests = self._bytes = 0
        self._refused: dict[str, int] = {}
        self._withheld: dict[str, int] = {}
        self._withheld_late = 0
        self._retries: dict[str, int] = {}

    def export(self) -> ExportReport:
        # The order matters: a mark may only name a version read before the events were.
        days = self.outbox.due_days()
        if not days:
            return self._report()
        self._objections.refresh()
        counts = self.outbox.counts()
        self._due = counts.pop("", 0)
        self._withheld.update(counts)
        if self._due:
            self.outbox.mint_ids()
        parts = math.ceil(self._due / self._policy.events_per_part)
        self._send_parts(parts)
        self.outbox.flush()
        if self._stopped is None:
            self._mark(days)
        return self._report()

    def _send_parts(self, parts: int) -> None:
        next_part = 0
        while self._stopped is None:
            now = self._now()
            if now > self._policy.max_seconds:
                self._stopped = "time is up"
                return
            events = self._pacer.take(now)
            if events:
                self._request(events)
                continue
            # While some subjects pause, the next part's can go.
            if not self._pacer.has_ready and next_part < parts:
                self._load(next_part, parts)
                next_part += 1
                continue
            wake = self._pacer.next_time()
            if wake is None:
                return
            if wake > self._policy.max_seconds:
                self._stopped = "time is up"
                return
            time.sleep(max(0.0, wake - now))

    def _load(self, part: int, parts: int) -> None:
        wire_events: list[WireEvent] = []
        for event in self.outbox.due_events(part, parts):
            if event.lacks_id:
                self._left_over.append(event)
                continue
            frozen = freeze(event, self._key)
            mapped = self._destination.map(outgoing(event, frozen))
            pending = _Pending(event, frozen, event.in_doubt_since, event.frozen is not None)
            if isinstance(mapped, Refusal):
                self._refuse(pending, mapped.reason)
                continue
            self._pending[frozen.insert_id] = pending
            wire_events.append(mapped)
        self._pacer.add(wire_events, self._now())

    def _request(self, taken: Sequence[WireEvent]) -> None:
        events = self._unobjected(taken)
        if not events:
            return
        pending = [self._pending[event.insert_id] for event in events]
        sent_at = datetime.now(UTC)
        request_id = uuid4()
        self._note(
            pending,
            "sending",
            request_id=request_id,
            deadline=sent_at + timedelta(seconds=self._destination.request_timeout),
            sent_at=sent_at,
        )
        # Once this is written the events are never forgotten; before it nothing leaves.
        self.outbox.flush()
        self._count_request(events, pending)
        answer = self._destination.send(events)
        self._pacer.sent(events, self._now())
        self._apply(
            events, pending, request_id, sent_at, self._destination.interpret(answer, events)
        )

    def _apply(
        self,
        events: Sequence[WireEvent],
        pending: Sequence[_Pending],
        request_id: UUID,
        sent_at: datetime,
        verdict: object,
    ) -> None:
        if isinstance(verdict, Accepted):
            self._failures = 0
            self._note(pending, "accepted", request_id=request_id)
            self._accepted += len(events)
            for event in events:
                del self._pending[event.insert_id]
            return
        if isinstance(verdict, TryAgain) and verdict.in_doubt:
            for item in pending:
                item.in_doubt_since = item.in_doubt_since or sent_at
        else:
            self._note(pending, "returned", request_id=request_id)
        if isinstance(verdict, Stop):
            raise DestinationError(f"{self._name}: {verdict.problem}")
        if isinstance(verdict, RefusedSome):
            self._failures = 0
            self._drop_refused(events, pending, request_id, verdict)
        elif isinstance(verdict, TooLarge):
            self._split(events, pending, request_id)
        elif isinstance(verdict, Throttled):
            self._pause(events, verdict)
        elif isinstance(verdict, TryAgain):
            self._back_off(events, verdict.reason, verdict.retry_after)

    # -- what each answer leads to -------------------------------------------------------------

    def _drop_refused(
        self,
        events: Sequence[WireEvent],
        pending: Sequence[_Pending],
        request_id: UUID,
        verdict: RefusedSome,
    ) -> None:
        rest: list[WireEvent] = []
        for index, event in enumerate(events):
            reason = verdict.reasons.get(index)
            if reason is None:
                rest.append(event)
            else:
                self._refuse(pending[index], reason, request_id)
                del self._pending[event.insert_id]
        self._pacer.put_back(rest)

    def _split(
        self, events: Sequence[WireEvent], pending: Sequence[_Pending], request_id: UUID
    ) -> None:
        if len(events) == 1:
            self._refuse(pending[0], "payload_too_large", request_id)
            del self._pending[events[0].insert_id]
            return
        self._retries["http_413"] = self._retries.get("http_413", 0) + 1
        self._pacer.shrink(events)
        self._pacer.put_back(events)

    def _pause(self, events: Sequence[WireEvent], verdict: Throttled) -> None:
        throttled = _subjects(events, verdict.subjects)
        exhausted = _subjects(events, verdict.exhausted)
        if not throttled and not exhausted:
            # The project as a whole, or somebody who is not in the request.
            self._back_off(events, "http_429", verdict.retry_after or self._policy.throttle_pause)
            return
        self._failures = 0
        self._retries["http_429"] = self._retries.get("http_429", 0) + 1
        pause = max(self._policy.throttle_pause, verdict.retry_after or 0.0)
        self._pacer.put_back(events)
        self._pacer.pause(throttled, self._now() + pause)
        # A daily quota comes back tomorrow: these events stay due for a later run.
        self._pacer.set_aside(exhausted)

    def _back_off(
        self, events: Sequence[WireEvent], reason: str, retry_after: float | None
    ) -> None:
        self._retries[reason] = self._retries.get(reason, 0) + 1
        self._failures += 1
        self._pacer.put_back(events)
        if self._failures >= self._policy.failures_before_stop:
            self._stopped = f"the destination fails: {reason}, {self._failures} times in a row"
            return
        most = min(
            self._policy.longest_backoff, self._policy.first_backoff * 2 ** (self._failures - 1)
        )
        jittered = random.uniform(most / 2, most)
        delay = max(jittered, retry_after or 0.0)
        self._pacer.pause_all(self._now() + delay)

    # -- keeping account -----------------------------------------------------------------------

    def _unobjected(self, taken: Sequence[WireEvent]) -> list[WireEvent]:
        """The events of people who have not objected since they were selected."""
        self._objections.refresh()
        kept: list[WireEvent] = []
        for wire in taken:
            event = self._pending[wire.insert_id].event
            reason = self._objections.reason(
                user=event.user, session=event.session, organisation=event.organisation
            )
            if reason is None:
                kept.append(wire)
                continue
            del self._pending[wire.insert_id]
            self._withheld[reason] = self._withheld.get(reason, 0) + 1
            self._withheld_late += 1
        return kept

    def _note(
        self,
        pending: Sequence[_Pending],
        state: State,
        *,
        request_id: UUID,
        deadline: datetime | None = None,
        sent_at: datetime | None = None,
    ) -> None:
        epoch = self._objections.erasure_epoch
        ends = deadline or datetime.now(UTC)
        self.outbox.note(
            Entry(
                event=item.event,
                frozen=item.frozen,
                state=state,
                request_id=request_id,
                erasure_epoch=epoch,
                deadline=ends,
                # From here on a kill leaves the event in doubt.
                in_doubt_since=item.in_doubt_since or sent_at,
            )
            for item in pending
        )

    def _refuse(self, pending: _Pending, reason: str, request_id: UUID | None = None) -> None:
        self._refused[reason] = self._refused.get(reason, 0) + 1
        self.outbox.note(
            [
                Entry(
                    event=pending.event,
                    frozen=pending.frozen,
                    state="refused",
                    reason=reason,
                    request_id=request_id or UUID(int=0),
                    erasure_epoch=self._objections.erasure_epoch,
                )
            ]
        )

    def _count_request(self, events: Sequence[WireEvent], pending: Sequence[_Pending]) -> None:
        self._requests += 1
        self._sent += len(events)
        self._resent += sum(item.was_sent for item in pending)
        self._bytes += self._destination.request_overhead + len(events) - 1
        self._bytes += sum(len(event.body) for event in events)
        for item in pending:
            item.was_sent = True

    def _mark(self, days: Sequence[DueDay]) -> None:
        unsettled = [item.event for item in self._pending.values()] + self._left_over
        # An event's reporting day is its UTC day or a neighbour of it.
        open_days = {
            _utc_day(event.occurred_ms) + timedelta(days=offset)
            for event in unsettled
            for offset in (-1, 0, 1)
        }
        self.outbox.mark([day for day in days if day.day not in open_days])

    def _report(self) -> ExportReport:
        settled = self._accepted + sum(self._refused.values()) + self._withheld_late
        return ExportReport(
            due=self._due,
            sent=self._sent,
            resent=self._resent,
            accepted=self._accepted,
            refused=self._refused,
            waiting=max(0, self._due - settled),
            withheld=self._withheld,
            requests=self._requests,
            bytes=self._bytes,
            retries=self._retries,
            seconds=self._now(),
            stopped=self._stopped,
        )

    def _now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started


def _utc_day(milliseconds: int) -> date:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).date()


def _subjects(events: Sequence[WireEvent], ids: frozenset[str]) -> set[str]:
    return {event.subject for event in events if event.device_id in ids or event.user_id in ids}
