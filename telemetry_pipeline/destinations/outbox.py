"""The outbox in ClickHouse: what is due at a destination, and what became of what was sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal
from uuid import UUID

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.destinations.statements import statement

State = Literal["sending", "returned", "refused", "accepted"]

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_NO_REQUEST = UUID(int=0)
_COLUMNS = (
    "destination",
    "event_id",
    "insert_id",
    "device_id",
    "user_id",
    "organisation_id",
    "occurred_at",
    "batch_id",
    "state",
    "reason",
    "request_id",
    "erasure_epoch",
    "deadline",
    "in_doubt_since",
    "recorded_at",
)
_MARK_COLUMNS = ("destination", "allowlist", "day", "touches", "touches_xor", "marked_at")


@dataclass(frozen=True)
class DueDay:
    """A day that may hold due events, and the version its touches had when it was read."""

    allowlist: str
    day: date
    touches: int
    touches_xor: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a first send fixed for ever: a second copy must look the same to be recognised."""

    insert_id: str
    device_id: str
    user_id: str
    organisation_id: str
    occurred_ms: int


@dataclass(frozen=True, slots=True)
class DueEvent:
    """An event that should leave. `user`, `session`, `organisation` are pseudonyms and stay here;
    0 is absent. `user_id` and `organisation_id` are the destination's ids of them, '' is none.
    """

    event_id: UUID
    name: str
    schema_version: str
    route_pattern: str | None
    payload_json: str
    occurred_ms: int
    batch_id: int
    user: int
    organisation: int
    session: int
    user_id: str
    organisation_id: str
    frozen: Frozen | None
    in_doubt_since: datetime | None

    @property
    def lacks_id(self) -> bool:
        """Whether a subject has no id yet: the event arrived after the ids were minted."""
        return bool(self.user and not self.user_id) or bool(
            self.organisation and not self.organisation_id
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A state of an event, to be recorded."""

    event: DueEvent
    frozen: Frozen
    state: State
    reason: str = ""
    request_id: UUID = _NO_REQUEST
    erasure_epoch: int = 0
    deadline: datetime = _NEVER
    in_doubt_since: datetime | None = None


def names_pattern(globs: Sequence[str]) -> str:
    """One RE2 pattern for event names that match any of the globs (`*` any text, `?` one sign).

    Raises ValueError without globs: no pattern may stand for "nothing", it must not be asked.
    """
    if not globs:
        raise ValueError("an empty allowlist matches nothing")
    translated = ("".join(_translate(sign) for sign in glob) for glob in sorted(set(globs)))
    return f"^(?:{'|'.join(translated)})$"


def _translate(sign: str) -> str:
    return {"*": ".*", "?": "."}.get(sign) or re.escape(sign)


class Outbox:
    """One destination's part of ops.export_outbox, under one allowlist.

    Rows are noted first and written together: `flush` writes them in one insert.
    """

    def __init__(self, client: Client, destination: str, globs: Sequence[str]) -> None:
        self._client = client
        self._destination = destination
        self._parameters = {"destination": destination, "names": names_pattern(globs)}
        self._noted: list[Entry] = []

    def due_days(self) -> list[DueDay]:
        """Days not marked as done. Read this before anything else of them."""
        rows = self._client.query(
            "SELECT allowlist, day, touches, touches_xor FROM ops.export_due_days("
            "destination = {destination:String}, names = {names:String})",
            parameters=self._parameters,
        ).result_rows
        return [DueDay(*row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Events that are due (key '') or withheld (keys consent, erasure, in_doubt)."""
        rows = self._client.query(
            "SELECT withheld, uniqExact(event_id) FROM ops.export_candidates("
            "destination = {destination:String}, names = {names:String}) GROUP BY withheld",
            parameters=self._parameters,
        ).result_rows
        return {withheld: int(events) for withheld, events in rows}

    def mint_ids(self) -> None:
        """Give every subject of a due event its random id at this destination."""
        self._client.command(statement("mint_ids"), parameters=self._parameters)

    def due_events(self, part: int, parts: int) -> list[DueEvent]:
        """The due events of one of `parts` disjoint parts, oldest first."""
        rows = self._client.query(
            statement("due_events"), parameters={**self._parameters, "part": part, "parts": parts}
        ).result_rows
        return [_due_event(row) for row in rows]

    def note(self, entries: Iterable[Entry]) -> None:
        """Keep these states for the next flush."""
        self._noted.extend(entries)

    def flush(self) -> None:
        """Write what was noted. When this returns, it is in the warehouse."""
        if not self._noted:
            return
        # A state noted later must win over one noted earlier in the same insert.
        now = datetime.now(UTC)
        rows = [
            self._row(entry, now + timedelta(microseconds=place))
            for place, entry in enumerate(self._noted)
        ]
        self._client.insert(
            "export_outbox",
            [list(column) for column in zip(*rows, strict=True)],
            column_names=_COLUMNS,
            database="ops",
            column_oriented=True,
            settings={"async_insert": 0},
        )
        self._noted.clear()

    def mark(self, days: Sequence[DueDay]) -> None:
        """Say that nothing of these days is left, as of the version they were read at."""
        if not days:
            return
        now = datetime.now(UTC)
        self._client.insert(
            "export_marks",
            [
                [self._destination, day.allowlist, day.day, day.touches, day.touches_xor, now]
                for day in days
            ],
            column_names=_MARK_COLUMNS,
            database="ops",
            settings={"async_insert": 0},
        )

    def _row(self, entry: Entry, now: datetime) -> tuple[object, ...]:
        frozen = entry.frozen
        return (
            self._destination,
            entry.event.event_id,
            frozen.insert_id,
            frozen.device_id,
            frozen.user_id,
            frozen.organisation_id,
            _NEVER + timedelta(milliseconds=frozen.occurred_ms),
            entry.event.batch_id,
            entry.state,
            entry.reason,
            entry.request_id,
            entry.erasure_epoch,
            entry.deadline,
            entry.in_doubt_since or _NEVER,
            now,
        )


def due_in_total(client: Client, destination: str, globs: Sequence[str]) -> int:
    """Distinct events that should be at the destination in the end: accepted there, or due."""
    if not globs:
        return accepted_in_total(client, destination)
    answer = client.query(
        statement("due_in_total"),
        parameters={"destination": destination, "names": names_pattern(globs)},
    )
    return int(answer.result_rows[0][0])


def accepted_in_total(client: Client, destination: str) -> int:
    """Distinct events that the destination accepted and whose raw events still live."""
    answer = client.query(
        "SELECT uniqExact(event_id) FROM ops.export_outbox FINAL "
        "WHERE destination = {destination:String} AND state = 'accepted'",
        parameters={"destination": destination},
    )
    return int(answer.result_rows[0][0])


def _due_event(row: Sequence[object]) -> DueEvent:
    *own, insert_id, device_id, user_id, organisation_id, occurred_ms, in_doubt_us = row
    frozen = None
    if insert_id:
        frozen = Frozen(
            str(insert_id), str(device_id), str(user_id), str(organisation_id), _int(occurred_ms)
        )
    doubt = _int(in_doubt_us)
    in_doubt_since = _NEVER + timedelta(microseconds=doubt) if doubt else None
    # The driver's rows carry no types; due_events.sql names these columns in this order.
    return DueEvent(*own, frozen, in_doubt_since)  # type: ignore[arg-type,call-arg]


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected an integer, got {type(value).__name__}")
    return value
