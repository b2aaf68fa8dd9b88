"""The exactly-once protocol one step at a time, over an engine in memory or a real warehouse.

The decisions are the loader's own: `Loader` runs on a thread that stops before every step it takes
(each call to the ledger, staging, landing) until it is told to go on, to die, or to break off in
the middle. Only what stands below it differs: `FakeEngine` with `FakeLedger`, or the warehouse with
`Ledger`. Time is in milliseconds of the engine's clock.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, Protocol, cast

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from log_records import DAY_MS, common, edge, line, record

from telemetry_pipeline.identity.keys import Key
from telemetry_pipeline.ingest.ledger import (
    CLOCK_MARGIN_SECONDS,
    Claim,
    ClaimTerms,
    Landed,
    Ledger,
    OpenClaim,
)
from telemetry_pipeline.ingest.loader import IngestError, IngestReport, Loader, LoaderKeys
from telemetry_pipeline.ingest.statements import Contract
from telemetry_pipeline.sources.base import Encoding, Loss, Position, Positions, Slice, SliceData

SOURCE_PREFIX = "protocol"
PARTITIONS = ("a", "b")
USERS = (0, 1)
CONTRACTS = ("old", "new")
KEY_IDS = ("1", "2")

#: Long beside what a run of the real thing takes, so that only `advance` lets a deadline pass.
DEADLINE_SECONDS = 3000
INSERT_SECONDS = 6000
GRACE_SECONDS = INSERT_SECONDS + CLOCK_MARGIN_SECONDS


# -- what is sent ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One event of the model. `kind`: good | trial (known to the old contract only) | unknown |
    denied (no consent). Days 0 and 1 are of one week, day 2 is of the week before."""

    number: int
    day: int = 0
    user: int = 0
    kind: str = "good"

    def judge(self, contract: str, erased: frozenset[int]) -> str:
        """The reason not to take it, '' for none; duplicates are the engine's to find."""
        if self.kind == "denied":
            return "consent_denied"
        if self.user in erased:
            return "erased"
        if self.kind == "unknown" or (self.kind == "trial" and contract != "old"):
            return "unknown_event"
        return ""

    @property
    def data(self) -> bytes:
        return _line_of(self)


DROPPED = ("consent_denied", "erased")
#: Weekly partitions of the events table: rows of one week land together or not at all.
WEEK_OF_DAY = {0: "events", 1: "events", 2: "older events"}
PIECES = ("events", "older events", "letters", "counts", "touches")
#: Tables that a heal removes rows from, in its order.
REMOVED = ("events", "letters", "counts")

_MONDAY = (int(time.time()) // 86_400 - (int(time.time()) // 86_400 + 3) % 7 - 7) * DAY_MS
_DAY_MS = {0: _MONDAY + DAY_MS, 1: _MONDAY + 2 * DAY_MS, 2: _MONDAY - 6 * DAY_MS}
_FIRST_ID = 1 << 100
_RECORDS: dict[bytes, Record] = {}


@functools.cache
def _line_of(item: Record) -> bytes:
    attributes = common(
        item.user,
        event__id=str(uuid.UUID(int=_FIRST_ID + item.number)),
        consent__analytics="denied" if item.kind == "denied" else "granted",
        trial__days=14 if item.kind == "trial" else None,
    )
    name = {"trial": "trial_started", "unknown": "never_heard_of"}.get(item.kind, "page_viewed")
    data = line(record(name, attributes, _DAY_MS[item.day] + DAY_MS // 2))
    _RECORDS[data] = item
    return data


def records_in(data: bytes) -> list[Record]:
    return [_RECORDS[item] for item in data.splitlines(keepends=True)]


@dataclass
class ModelSource:
    """Partitions that grow; one record an offset. `cut` is the longest slice of this reader.

    `fate` says of claimed ranges whether their bytes are `gone` or `changed`. A reader with
    `stray` starts that many records too early: its slices overlap others or are contained in them.
    `reported`: ranges that the source itself says are lost, every time it is asked.
    """

    name: str
    logs: dict[str, list[Record]] = field(default_factory=lambda: {name: [] for name in PARTITIONS})
    fate: dict[tuple[str, int, int], str] = field(default_factory=dict)
    reported: list[Loss] = field(default_factory=list)
    cut: int = 3
    stray: int = 0
    encoding: Encoding = "otlp_json"
    hashes_on_read: bool = False
    unit: str = "records"

    def waiting(self, positions: Positions) -> int:
        return sum(len(log) - self._start(name, positions) for name, log in self.logs.items())

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        for partition, log in self.logs.items():
            known = self._start(partition, positions)
            start = max(known - self.stray, 0)
            while known < len(log):
                end = min(start + self.cut, len(log))
                yield self.read(Slice(self.name, partition, 0, start, end))
                start, known = end, max(end, known)

    def read(self, wanted: Slice) -> SliceData:
        data = b"".join(item.data for item in self.records(wanted))
        return SliceData(wanted, data, hashlib.sha256(data[-4096:]).hexdigest())

    def records(self, wanted: Slice) -> list[Record]:
        return self.logs[wanted.partition][wanted.start : wanted.end]

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        data = self.read(wanted).data
        match self.fate.get((wanted.partition, wanted.start, wanted.end)):
            case "gone":
                return None
            case "changed":
                return data + Record(10**6).data
        return data

    def losses(self, positions: Positions) -> list[Loss]:
        return list(self.reported)

    def reach(self, positions: Positions) -> Mapping[tuple[str, int], int]:
        return {}

    def acknowledge(self, settled: Slice, rejected: Mapping[str, int]) -> None:
        pass

    def close(self) -> None:
        pass

    @staticmethod
    def _start(partition: str, positions: Positions) -> int:
        known = positions.get((partition, 0))
        return known.end if known else 0


# -- a worker that stops before every step -----------------------------------------------------


class Died(BaseException):
    """Raised in a worker where a real one would be killed."""


@dataclass(frozen=True)
class Order:
    """What becomes of the step a worker waits before.

    `kept`: only these pieces of its insert land, then the insert fails. `removes`: so many tables
    are removed from, then the worker dies. `dies`: it dies before the step, or after the pieces.
    """

    dies: bool = False
    kept: frozenset[str] | None = None
    removes: int | None = None


GO = Order()


class Worker:
    """Work on a thread of its own, of which one step at a time is let happen."""

    def __init__(self, work: Callable[[Worker], object]) -> None:
        self.at: str | None = None
        #: What it owns, and how many seconds had passed in its world when it came to own it.
        self.claim: Claim | None = None
        self.claimed_at = 0
        self._is_dying = False
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._news: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        self._hear()

    def wait(self, step: str) -> Order:
        """Called by the work before it takes a step."""
        if self._is_dying:
            # What the work would do on its way out, nobody does who was killed.
            raise Died
        self._news.put(step)
        order = self._orders.get()
        self._is_dying = order.dies or order.removes is not None
        if order.dies and order.kept is None:
            raise Died
        return order

    def take(self, order: Order = GO) -> None:
        """Let the worker take the step it waits before, and come to the next."""
        self._orders.put(order)
        self._hear()

    def _hear(self) -> None:
        match news := self._news.get():
            case BaseException():
                self.at = None
                self._thread.join()
                # A step may be refused or broken off, and then the run ends: that is allowed.
                if not isinstance(news, Died | DatabaseError | IngestError):
                    raise news
            case _:
                self.at = news

    def _run(self, work: Callable[[Worker], object]) -> None:
        try:
            work(self)
        except BaseException as error:
            self._news.put(error)
        else:
            self._news.put(None)


class SteppedLedger:
    """A ledger whose every call is a step of `worker`."""

    def __init__(self, worker: Worker, make: Callable[[int | None], Ledger]) -> None:
        self._worker = worker
        self._make = make

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in ("note_reach", "kill"):
            return cast("Callable[..., Any]", getattr(self._make(None), name))

        def call(*args: Any, **kwargs: Any) -> Any:
            order = self._worker.wait(name)
            return getattr(self._make(order.removes), name)(*args, **kwargs)

        return call


@dataclass(frozen=True, kw_only=True)
class SteppedLoader(Loader):
    """The loader, on a worker of a world."""

    worker: Worker
    world: Any

    @property
    def _ledger(self) -> Ledger:
        stepped = SteppedLedger(self.worker, lambda removes: self.world.ledger(self, removes))
        return cast("Ledger", stepped)


# -- what stands in the ledger and the tables --------------------------------------------------


@dataclass(frozen=True, order=True)
class Touch:
    day: int
    batch_id: int
    attempt: int
    kind: str
    records: int


@dataclass(frozen=True)
class Result:
    batch_id: int
    attempt: int
    received: int
    accepted: int
    duplicates: int
    rejected: Mapping[str, int]
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Owned:
    """A claim that owns its (slice, attempt)."""

    slice: Slice
    attempt: int
    contract: str
    key_id: str


@dataclass(frozen=True)
class Facts:
    """What the tables hold, in an order that does not depend on who asks.

    events: (batch, attempt, event number, day, pseudonym key id); letters: (batch, attempt,
    reason); counts: (batch, attempt, verdict, reason, records); losses: slices.
    """

    owned: list[Owned]
    claim_rows: int
    events: list[tuple[int, int, int, int, str]]
    letters: list[tuple[int, int, str]]
    counts: list[tuple[int, int, str, str, int]]
    touches: list[Touch]
    results: list[Result]
    losses: list[Slice]

    def rows_of(self, batch_id: int) -> tuple[Any, ...]:
        """Everything of a batch that a reader could see."""
        return tuple(
            [row for row in table if row[0] == batch_id]
            for table in (self.events, self.letters, self.counts)
        )

    def rows_on(self, day: int) -> Counter[tuple[int, str]]:
        """What a mart of that day is built from."""
        return Counter((number, key_id) for _, _, number, on, key_id in self.events if on == day)

    def touches_on(self, day: int) -> list[Touch]:
        return [touch for touch in self.touches if touch.day == day]


# -- the engine in memory ----------------------------------------------------------------------


@dataclass(frozen=True)
class ClaimRow:
    slice: Slice
    attempt: int
    claim_id: uuid.UUID
    slice_time_ms: int
    deadline_ms: int
    contract: str
    key_id: str
    bytes_hash: str
    tail_sha256: str

    @property
    def key(self) -> tuple[str, int, int, int]:
        return (self.slice.partition, self.slice.epoch, self.slice.start, self.attempt)


@dataclass(frozen=True)
class EventRow:
    batch_id: int
    attempt: int
    record: Record
    key_id: str


#: Two (batch, attempt), in order.
Pair = tuple[tuple[int, int], tuple[int, int]]


@dataclass(eq=False)
class Insert:
    """An insert that the engine runs; whoever asked for it may be dead by now."""

    claim: Claim
    records: list[Record]
    contract: str
    key_id: str
    begun_ms: int
    #: Events that stood elsewhere when the slice was staged.
    repeats: frozenset[int]


@dataclass
class FakeEngine:
    """What the protocol needs of the warehouse: tables, a clock, tokens with a window.

    With `inserts_take_time` an insert begins in one step and commits in another; a KILL does not
    reach it (the protocol must not rest on that).
    """

    inserts_take_time: bool = False
    now_ms: int = 1_000_000
    claims: list[ClaimRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    letters: list[tuple[int, int, str]] = field(default_factory=list)
    counts: list[tuple[int, int, str, str, int]] = field(default_factory=list)
    touches: list[Touch] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    erased: frozenset[int] = frozenset()
    tokens: set[tuple[object, ...]] = field(default_factory=set)
    running: list[Insert] = field(default_factory=list)
    #: Of two (batch, attempt) with copies of one event, the batches that offered to give theirs up.
    offers: dict[Pair, list[int]] = field(default_factory=dict)

    def is_new(self, *token: object) -> bool:
        """Whether an insert under this token lands; it is remembered from then on."""
        known = token in self.tokens
        self.tokens.add(token)
        return not known

    def owners(self) -> list[ClaimRow]:
        """The first row for each key."""
        first: dict[tuple[str, int, int, int], ClaimRow] = {}
        for row in self.claims:
            first.setdefault(row.key, row)
        return list(first.values())

    def begin(self, insert: Insert) -> None:
        if self.now_ms > insert.claim.deadline_ms:
            raise DatabaseError("slice deadline passed")
        self.running.append(insert)

    def commit(self, insert: Insert, kept: frozenset[str] | None) -> None:
        """Land an insert, whole or in some pieces."""
        if insert not in self.running:
            raise DatabaseError("the insert was ended")
        self.running.remove(insert)
        if self.now_ms > insert.begun_ms + INSERT_SECONDS * 1000:
            raise DatabaseError("max_execution_time")
        batch_id, attempt = insert.claim.slice.batch_id, insert.claim.attempt
        pieces = frozenset(PIECES) if kept is None else kept
        accepted, letters, counts = self._judge(insert)
        if self.is_new("land", batch_id, attempt):
            self.events += [
                EventRow(batch_id, attempt, item, insert.key_id)
                for item in accepted
                if WEEK_OF_DAY[item.day] in pieces
            ]
            if "letters" in pieces:
                self.letters += [(batch_id, attempt, reason) for reason in letters]
            if "counts" in pieces:
                self.counts += [(batch_id, attempt, *what, n) for what, n in counts.items()]
            if "touches" in pieces:
                days = Counter(item.day for item in accepted)
                self.touches += [Touch(d, batch_id, attempt, "landed", n) for d, n in days.items()]
        if kept is not None:
            raise DatabaseError("the insert broke off")

    def stored_elsewhere(self, batch_id: int) -> frozenset[int]:
        """The events that stand in another batch's rows."""
        return frozenset(row.record.number for row in self.events if row.batch_id != batch_id)

    def _judge(self, insert: Insert) -> tuple[list[Record], list[str], Counter[tuple[str, str]]]:
        accepted: list[Record] = []
        letters: list[str] = []
        counts: Counter[tuple[str, str]] = Counter()
        seen = set(insert.repeats)
        for item in insert.records:
            reason = item.judge(insert.contract, self.erased)
            if reason in DROPPED:
                counts["dropped", reason] += 1
            elif reason:
                counts["rejected", reason] += 1
                letters.append(reason)
            elif item.number in seen:
                counts["duplicate", ""] += 1
            else:
                counts["accepted", ""] += 1
                accepted.append(item)
            if item.judge(insert.contract, frozenset()) == "":
                seen.add(item.number)
        return accepted, letters, counts


class FakeLedger(Ledger):
    """The ledger over the engine in memory; reads and writes as the statements do."""

    def __init__(
        self, engine: FakeEngine, source: str, worker: Worker, removes: int | None = None
    ) -> None:
        self.engine = engine
        self.worker = worker
        self._source = source
        self._removes = removes

    def positions(self) -> dict[tuple[str, int], Position]:
        ends: dict[tuple[str, int], Position] = {}
        for row in self.engine.owners():
            key = (row.slice.partition, row.slice.epoch)
            if key not in ends or row.slice.end > ends[key].end:
                ends[key] = Position(row.slice.end, row.tail_sha256)
        return ends

    def note_reach(
        self, reach: Mapping[tuple[str, int], int], positions: Mapping[tuple[str, int], Position]
    ) -> None:
        assert not reach

    def open_claims(self) -> list[OpenClaim]:
        engine = self.engine
        done = {result.batch_id for result in engine.results}
        latest: dict[tuple[str, int, int], ClaimRow] = {}
        for row in sorted(engine.owners(), key=lambda row: row.key):
            if row.slice.batch_id not in done:
                latest[row.key[:3]] = row
        return [
            OpenClaim(
                row.slice,
                row.attempt,
                row.bytes_hash,
                row.tail_sha256,
                may_be_taken_over=row.deadline_ms + self.grace_seconds * 1000 < engine.now_ms,
            )
            for row in latest.values()
        ]

    grace_seconds = GRACE_SECONDS

    def claim(
        self,
        wanted: Slice,
        attempt: int,
        terms: ClaimTerms,
        *,
        bytes_hash: str,
        tail_sha256: str,
    ) -> Claim | None:
        now = self.engine.now_ms
        row = ClaimRow(
            slice=wanted,
            attempt=attempt,
            claim_id=uuid.uuid4(),
            slice_time_ms=now,
            deadline_ms=now + DEADLINE_SECONDS * 1000,
            contract=terms.contract_hash,
            key_id=terms.pseudonym_key_id,
            bytes_hash=bytes_hash,
            tail_sha256=tail_sha256,
        )
        if self.engine.is_new("claim", *row.key):
            self.engine.claims.append(row)
        owner = self.owner(row.key)
        if owner.claim_id != row.claim_id:
            return None
        self.worker.claim = Claim(wanted, attempt, owner.slice_time_ms, owner.deadline_ms)
        return self.worker.claim

    def owner(self, key: tuple[str, int, int, int]) -> ClaimRow:
        return next(row for row in self.engine.claims if row.key == key)

    def landed(self, batch_id: int) -> Landed:
        engine = self.engine
        counts = [row for row in engine.counts if row[0] == batch_id]
        attempts = {attempt for _, attempt, *_ in counts}
        last = max(attempts, default=0)
        by: Counter[str] = Counter()
        rejected: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for _, _, verdict, reason, records in counts:
            by[verdict] += records
            if verdict == "rejected":
                rejected[reason] += records
            if verdict == "dropped":
                dropped[reason] += records
        return Landed(
            attempt=last,
            attempts=len(attempts),
            events=sum(row.batch_id == batch_id for row in engine.events),
            dead_letters=dict(Counter(row[2] for row in engine.letters if row[0] == batch_id)),
            touched=sum(
                touch.records
                for touch in engine.touches
                if (touch.batch_id, touch.attempt, touch.kind) == (batch_id, last, "landed")
            ),
            received=sum(by.values()),
            accepted=by["accepted"],
            duplicates=by["duplicate"],
            rejected=dict(rejected),
            dropped=dict(dropped),
            unknown_attributes=0,
        )

    def touch(self, wanted: Slice, attempt: int, kind: str, timezone: str) -> None:
        batch_id = wanted.batch_id
        days = self.settled_days(batch_id) if kind == "settled" else self.days_with_rows(batch_id)
        if days and self.engine.is_new("touch", kind, batch_id, attempt):
            self.engine.touches += [Touch(day, batch_id, attempt, kind, 0) for day in days]

    def days_with_rows(self, batch_id: int) -> set[int]:
        """The days that a deleting touch names."""
        return {row.record.day for row in self.engine.events if row.batch_id == batch_id}

    def settled_days(self, batch_id: int) -> set[int]:
        """The days that a settled touch names."""
        return {
            touch.day
            for touch in self.engine.touches
            if touch.batch_id == batch_id and touch.kind in ("landed", "deleting")
        }

    def finish(self, wanted: Slice, attempt: int, landed: Landed, *, deadline_ms: int = 0) -> None:
        batch_id = wanted.batch_id
        if self.has_result(batch_id):
            return
        copies = self.copies_given_up(batch_id, landed)
        self.refuse_after(deadline_ms)
        if self.engine.is_new("result", batch_id):
            self.engine.results.append(
                Result(
                    batch_id,
                    attempt,
                    landed.received,
                    landed.accepted - copies,
                    landed.duplicates + copies,
                    landed.rejected,
                    landed.dropped,
                )
            )

    def has_result(self, batch_id: int) -> bool:
        return any(result.batch_id == batch_id for result in self.engine.results)

    def copies_given_up(self, batch_id: int, landed: Landed) -> int:
        """How many of the landed rows are not there any more, which only copies may be."""
        present = sum(row.batch_id == batch_id for row in self.engine.events)
        offered = any(batch_id in offers for offers in self.engine.offers.values())
        if present > landed.accepted or (present < landed.accepted and not offered):
            raise DatabaseError("rows of the batch are missing")
        return landed.accepted - present

    def refuse_after(self, deadline_ms: int) -> None:
        """Refuse past a deadline; 0 is none."""
        if deadline_ms and self.engine.now_ms > deadline_ms:
            raise DatabaseError("slice deadline passed")

    def remove(self, batch_id: int, before_attempt: int) -> None:
        engine = self.engine
        for number, table in enumerate(REMOVED):
            if number == self._removes:
                raise Died
            match table:
                case "events":
                    engine.events = [
                        row
                        for row in engine.events
                        if row.batch_id != batch_id or row.attempt >= before_attempt
                    ]
                case "letters":
                    engine.letters = [
                        row
                        for row in engine.letters
                        if row[0] != batch_id or row[1] >= before_attempt
                    ]
                case "counts":
                    engine.counts = [
                        row
                        for row in engine.counts
                        if row[0] != batch_id or row[1] >= before_attempt
                    ]

    def yield_copies(self, wanted: Slice, attempt: int, timezone: str) -> int:
        mine = wanted.batch_id
        numbers = {row.record.number for row in self.engine.events if row.batch_id == mine}
        rivals = {
            (row.batch_id, row.attempt): self.has_result(row.batch_id)
            for row in self.engine.events
            if row.record.number in numbers and row.batch_id != mine
        }
        removed = 0
        for rival, is_settled in sorted(rivals.items()):
            if self.gives_up((mine, attempt), rival) or self.yields_to(is_settled):
                self.touch(wanted, attempt, "deleting", timezone)
                self.worker.wait("remove_copies")
                removed += self.remove_copies(mine, attempt, rival[0])
        return removed

    def gives_up(self, me: tuple[int, int], rival: tuple[int, int]) -> bool:
        """Whether this (batch, attempt) gives its copies up: the first to offer does."""
        pair = self.pair(me, rival)
        offers = self.engine.offers.setdefault(pair, [])
        if self.engine.is_new("copies", *pair):
            offers.append(me[0])
        return offers[0] == me[0]

    def pair(self, me: tuple[int, int], rival: tuple[int, int]) -> Pair:
        """What a decision stands for."""
        return min(me, rival), max(me, rival)

    def yields_to(self, is_settled: bool) -> bool:
        """Whether copies are given up whatever was decided, because the rival has a result."""
        return is_settled

    def remove_copies(self, batch_id: int, attempt: int, rival_id: int) -> int:
        if self.may_not_lose_rows(batch_id):
            return 0
        theirs = {row.record.number for row in self.engine.events if row.batch_id == rival_id}
        kept = [
            row
            for row in self.engine.events
            if (row.batch_id, row.attempt) != (batch_id, attempt) or row.record.number not in theirs
        ]
        removed = len(self.engine.events) - len(kept)
        self.engine.events = kept
        return removed

    def may_not_lose_rows(self, batch_id: int) -> bool:
        return self.has_result(batch_id)

    def record_loss(self, loss: Loss, *, deadline_ms: int = 0) -> None:
        if loss in self.engine.losses:
            return
        self.refuse_after(deadline_ms)
        if self.engine.is_new("loss", loss):
            self.engine.losses.append(loss)

    def kill(self, query_id: str) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class ModelLoader(SteppedLoader):
    """The loader over the engine in memory: staging is a list, landing is `FakeEngine.commit`."""

    def _keep_contract(self) -> None:
        pass

    @contextmanager
    def _staged(self, claim: Claim, cut: SliceData) -> Iterator[int]:
        self.worker.wait("stage")
        records = records_in(cut.data)
        self.world.staged[self.worker] = (
            records,
            self.world.engine.stored_elsewhere(claim.slice.batch_id),
        )
        yield len(records)

    def _land(self, claim: Claim) -> None:
        engine: FakeEngine = self.world.engine
        order = self.worker.wait("land")
        records, repeats = self.world.staged[self.worker]
        insert = Insert(
            claim,
            records,
            self.contract.contract_json,
            self.keys.pseudonym.key_id,
            engine.now_ms,
            repeats,
        )
        engine.begin(insert)
        if engine.inserts_take_time:
            order = self.worker.wait("commit")
        try:
            engine.commit(insert, order.kept)
        finally:
            if order.dies:
                raise Died


# -- the worlds that one set of rules drives ---------------------------------------------------


class World(Protocol):
    """One source, up to three workers, and what they work on."""

    source: ModelSource
    workers: dict[int, Worker]
    contract: str
    key_id: str

    def start(self, slot: int, *, cut: int, stray: int = 0) -> None: ...
    def advance(self, seconds: int) -> None: ...
    def pass_window(self) -> None: ...
    def erase(self, user: int) -> None: ...
    def facts(self) -> Facts: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class ModelContract:
    """What the loader asks of a contract before it stages anything."""

    contract_json: str

    @property
    def contract_hash(self) -> str:
        return self.contract_json

    @property
    def statement_hash(self) -> str:
        return self.contract_json


def _keys(key_id: str) -> LoaderKeys:
    return LoaderKeys(*[_pseudonym_key(key_id)] * 3)


@dataclass(frozen=True)
class Design:
    """The protocol's parts as the model uses them; mutations replace one of them."""

    engine: type[FakeEngine] = FakeEngine
    ledger: type[FakeLedger] = FakeLedger
    loader: type[ModelLoader] = ModelLoader


class FakeWorld:
    """The loader's decisions over the engine in memory."""

    def __init__(self, source: ModelSource, design: Design, *, inserts_take_time: bool) -> None:
        self.source = source
        self.engine = design.engine(inserts_take_time=inserts_take_time)
        self.workers: dict[int, Worker] = {}
        self.staged: dict[Worker, tuple[list[Record], frozenset[int]]] = {}
        self.contract, self.key_id = CONTRACTS[0], KEY_IDS[0]
        self._design = design

    def start(self, slot: int, *, cut: int, stray: int = 0) -> None:
        source = replace(self.source, cut=cut, stray=stray)
        contract, keys = ModelContract(self.contract), _keys(self.key_id)

        def work(worker: Worker) -> IngestReport:
            loader = self._design.loader(
                client=cast("Client", None),
                source=source,
                contract=cast("Contract", contract),
                keys=keys,
                run_id=f"slot {slot}",
                timezone="UTC",
                worker=worker,
                world=self,
            )
            return loader.run(max_bytes=2**40)

        self.workers[slot] = Worker(work)

    def ledger(self, loader: SteppedLoader, removes: int | None) -> Ledger:
        return self._design.ledger(self.engine, loader.source.name, loader.worker, removes)

    def close(self) -> None:
        pass

    def advance(self, seconds: int) -> None:
        self.engine.now_ms += seconds * 1000

    def pass_window(self) -> None:
        self.engine.tokens.clear()

    def erase(self, user: int) -> None:
        self.engine.erased |= {user}

    def facts(self) -> Facts:
        engine = self.engine
        return Facts(
            owned=sorted(
                (
                    Owned(row.slice, row.attempt, row.contract, row.key_id)
                    for row in engine.owners()
                ),
                key=lambda owned: (owned.slice.partition, owned.slice.start, owned.attempt),
            ),
            claim_rows=len(engine.claims),
            events=sorted(
                (row.batch_id, row.attempt, row.record.number, row.record.day, row.key_id)
                for row in engine.events
            ),
            letters=sorted(engine.letters),
            counts=sorted(engine.counts),
            touches=sorted(engine.touches),
            results=sorted(engine.results, key=lambda row: (row.batch_id, row.attempt)),
            losses=sorted(
                (loss.slice for loss in engine.losses),
                key=lambda lost: (lost.partition, lost.start, lost.end),
            ),
        )


# -- the real warehouse ------------------------------------------------------------------------

_TABLES = {
    "events": "raw.product_telemetry_events_storage",
    "letters": "raw.dead_letters",
    "counts": "ops.slice_counts",
    "touches": "ops.touches",
}
_WITH_TOKENS = (
    *("ops.slice_intents", "ops.slice_results", "ops.source_losses", "ops.raced_copies"),
    *_TABLES.values(),
)
_SOON = {"lightweight_deletes_sync": 2, "mutations_sync": 2}


class SteppedClient:
    """A client whose owner stops before it removes copies.

    `deletes`: it is killed before its n-th removal of what earlier attempts left, from now.
    """

    def __init__(self, client: Client, worker: Worker, deletes: int | None) -> None:
        self._client = client
        self._worker = worker
        self._left = deletes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def command(self, text: str, *args: Any, **kwargs: Any) -> object:
        if "{rival_id:" in text and "DELETE" in text:
            self._worker.wait("remove_copies")
        if self._left is not None and text.startswith("DELETE"):
            if not self._left:
                raise Died
            self._left -= 1
        return self._client.command(text, *args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class RealLoader(SteppedLoader):
    """The loader as it is, with a stop before it stages and before it lands."""

    @contextmanager
    def _staged(self, claim: Claim, cut: SliceData) -> Iterator[int]:
        self.worker.wait("stage")
        with super()._staged(claim, cut) as received:
            yield received

    def _land(self, claim: Claim) -> None:
        order = self.worker.wait("land")
        begun = replace(claim, deadline_ms=self.world.as_of_now(self.worker, claim.deadline_ms))
        # What begins in time may commit late; the statement itself cannot be made to wait.
        if self.world.inserts_take_time and begun.deadline_ms > time.time() * 1000:
            order = self.worker.wait("commit")
        super()._land(begun)
        if order.kept is not None:
            self.world.lose(claim, frozenset(PIECES) - order.kept)
            if order.dies:
                raise Died
            raise DatabaseError("the insert broke off")


class RealWorld:
    """The loader's decisions over the warehouse, by the same orders as a FakeWorld's.

    Nobody can turn the warehouse's clock. Time passes by moving every deadline, in the ledger and
    in the hands of workers, into the past: all that anybody compares the clock with.
    """

    def __init__(
        self,
        source: ModelSource,
        client: Client,
        connect_anew: Callable[[], Client],
        make: Callable[[Client, ModelSource, str], Loader],
        contract_hashes: Mapping[str, str],
        *,
        inserts_take_time: bool,
    ) -> None:
        self.source = source
        self.inserts_take_time = inserts_take_time
        self.workers: dict[int, Worker] = {}
        self.contract, self.key_id = CONTRACTS[0], KEY_IDS[0]
        self._client = client
        self._connect_anew = connect_anew
        self._sessions: list[Client] = []
        self._make = make
        self._contract_of = {hash_: name for name, hash_ in contract_hashes.items()}
        self.passed = 0
        # Other events of these ids, and other subjects, are none of this world's.
        for table in (*_TABLES.values(), "privacy.erasure_tombstones"):
            client.command(f"TRUNCATE TABLE {table}")

    def start(self, slot: int, *, cut: int, stray: int = 0) -> None:
        source = replace(self.source, cut=cut, stray=stray)
        # A session of its own for each loader, as in production: its staging tables are nobody's.
        session = self._connect_anew()
        self._sessions.append(session)
        made = self._make(session, source, self.contract)
        keys = replace(made.keys, pseudonym=_pseudonym_key(self.key_id))

        def work(worker: Worker) -> IngestReport:
            parts = vars(made) | {"keys": keys, "run_id": f"slot {slot}"}
            return RealLoader(**parts, worker=worker, world=self).run(max_bytes=2**40)

        self.workers[slot] = Worker(work)

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def ledger(self, loader: SteppedLoader, removes: int | None) -> Ledger:
        client = cast("Client", SteppedClient(loader.client, loader.worker, removes))
        return _LedgerInTime(client, loader.source.name, self, loader.worker)

    def as_of_now(self, worker: Worker, deadline_ms: int) -> int:
        """A deadline of the worker's claim, as if the clock had been turned since it was made."""
        return deadline_ms - (self.passed - worker.claimed_at) * 1000

    def advance(self, seconds: int) -> None:
        self.passed += seconds
        if seconds:
            self._client.command(
                f"ALTER TABLE ops.slice_intents UPDATE deadline = deadline - INTERVAL {seconds} "
                f"SECOND WHERE source = '{self.source.name}'",
                settings=_SOON,
            )

    def pass_window(self) -> None:
        """Forget every token, as 10,000 later inserts would make the tables do."""
        for table in _WITH_TOKENS:
            for window in (0, 10_000):
                self._client.command(
                    f"ALTER TABLE {table} MODIFY SETTING "
                    f"non_replicated_deduplication_window = {window}"
                )

    def erase(self, user: int) -> None:
        for key_id in KEY_IDS:
            self._client.command(
                "INSERT INTO privacy.erasure_tombstones (subject_kind, subject) SELECT 'user', "
                "reinterpretAsUInt64(substring(HMAC('SHA256', {id:String}, {secret_key:String}), "
                "1, 8))",
                {"id": edge("user", user), "secret_key": _pseudonym_key(key_id).derive("user")},
            )

    def lose(self, claim: Claim, pieces: frozenset[str]) -> None:
        """Make these pieces of an insert not have landed."""
        mine = f"batch_id = {claim.slice.batch_id} AND attempt = {claim.attempt}"
        week_of_day_2 = f"occurred_at < toDateTime64({_MONDAY // 1000}, 3, 'UTC')"
        for piece in pieces:
            rows = {
                "events": f"{mine} AND NOT ({week_of_day_2})",
                "older events": f"{mine} AND {week_of_day_2}",
            }.get(piece, mine)
            table = _TABLES["events" if piece == "older events" else piece]
            self._client.command(f"DELETE FROM {table} WHERE {rows}", settings=_SOON)

    def facts(self) -> Facts:
        slices: dict[int, Slice] = {}
        owned: list[Owned] = []
        rows = self._ask(
            "SELECT partition, epoch, start_offset, end_offset, attempt, contract_hash, "
            "pseudonym_key_id FROM ops.slice_intents WHERE source = {source} "
            "ORDER BY partition, start_offset, attempt, claimed_at, claim_id"
        )
        for partition, epoch, start, end, attempt, contract, key_id in rows:
            claimed = Slice(self.source.name, partition, epoch, start, end)
            slices[claimed.batch_id] = claimed
            key = (partition, start, attempt)
            if (
                not owned
                or (owned[-1].slice.partition, owned[-1].slice.start, owned[-1].attempt) != key
            ):
                owned.append(Owned(claimed, attempt, self._contract_of[contract], key_id))
        return Facts(
            owned=owned,
            claim_rows=len(rows),
            events=sorted(
                (batch, attempt, uuid.UUID(str(event)).int - _FIRST_ID, _day_number(at), key_id)
                for batch, attempt, event, at, key_id in self._ask(
                    "SELECT batch_id, attempt, event_id, toUnixTimestamp64Milli(occurred_at), "
                    f"pseudonym_key_id FROM {_TABLES['events']} WHERE batch_id IN {{batches}}"
                )
            ),
            letters=sorted(
                self._ask(
                    "SELECT batch_id, attempt, toString(reason) FROM raw.dead_letters "
                    "WHERE batch_id IN {batches}"
                )
            ),
            counts=sorted(
                self._ask(
                    "SELECT batch_id, attempt, toString(verdict), toString(reason), records "
                    "FROM ops.slice_counts WHERE batch_id IN {batches}"
                )
            ),
            touches=sorted(
                Touch(_day_number(at), batch, attempt, kind, records)
                for at, batch, attempt, kind, records in self._ask(
                    "SELECT toUnixTimestamp(toDateTime(day, 'UTC')) * 1000, batch_id, attempt, "
                    "toString(kind), records FROM ops.touches WHERE batch_id IN {batches}"
                )
            ),
            results=[
                Result(*row)
                for row in self._ask(
                    "SELECT batch_id, attempt, received, accepted, duplicates, rejected, dropped "
                    "FROM ops.slice_results WHERE source = {source} ORDER BY batch_id, attempt"
                )
            ],
            losses=[
                Slice(self.source.name, *row)
                for row in self._ask(
                    "SELECT partition, epoch, start_offset, end_offset FROM ops.source_losses "
                    "WHERE source = {source} ORDER BY ALL"
                )
            ],
        )

    def _ask(self, statement: str) -> list[Any]:
        name = f"'{self.source.name}'"
        batches = f"(SELECT batch_id FROM ops.slice_intents WHERE source = {name})"
        text = statement.replace("{source}", name).replace("{batches}", batches)
        return [tuple(row) for row in self._client.query(text).result_rows]


class _LedgerInTime(Ledger):
    """A ledger to which the deadlines that a worker holds have moved with the world's clock."""

    def __init__(self, client: Client, source: str, world: RealWorld, worker: Worker) -> None:
        super().__init__(client, source)
        self._world = world
        self._worker = worker

    def claim(self, *args: Any, **kwargs: Any) -> Claim | None:
        claim = super().claim(*args, **kwargs)
        if claim is not None:
            self._worker.claim, self._worker.claimed_at = claim, self._world.passed
        return claim

    def finish(self, wanted: Slice, attempt: int, landed: Landed, *, deadline_ms: int = 0) -> None:
        super().finish(wanted, attempt, landed, deadline_ms=self._moved(deadline_ms))

    def record_loss(self, loss: Loss, *, deadline_ms: int = 0) -> None:
        super().record_loss(loss, deadline_ms=self._moved(deadline_ms))

    def _moved(self, deadline_ms: int) -> int:
        return self._world.as_of_now(self._worker, deadline_ms) if deadline_ms else 0


def _pseudonym_key(key_id: str) -> Key:
    return Key(key_id, hashlib.sha256(key_id.encode()).digest())


def _day_number(at_ms: int) -> int:
    return next(day for day, start in _DAY_MS.items() if start <= at_ms < start + DAY_MS)


# -- the protocol with its gaps closed ---------------------------------------------------------


class ClosedLedger(FakeLedger):
    """Whoever owns a claim writes nothing once another may own the next, and touches under it."""

    def finish(self, wanted: Slice, attempt: int, landed: Landed, *, deadline_ms: int = 0) -> None:
        self.refuse_late()
        super().finish(wanted, attempt, landed, deadline_ms=deadline_ms)

    def touch(self, wanted: Slice, attempt: int, kind: str, timezone: str) -> None:
        self.refuse_late()
        super().touch(wanted, self.touching_attempt(attempt), kind, timezone)

    def remove(self, batch_id: int, before_attempt: int) -> None:
        self.refuse_late()
        super().remove(batch_id, before_attempt)

    def remove_copies(self, batch_id: int, attempt: int, rival_id: int) -> int:
        self.refuse_late()
        return super().remove_copies(batch_id, attempt, rival_id)

    def refuse_late(self) -> None:
        """The longest insert after the deadline; GRACE_SECONDS after it, another may take over."""
        assert self.worker.claim is not None
        self.refuse_after(self.worker.claim.deadline_ms + INSERT_SECONDS * 1000)

    def touching_attempt(self, attempt: int) -> int:
        """The attempt that owns the claim, whosever rows it settles: no two touch under one."""
        assert self.worker.claim is not None
        return self.worker.claim.attempt
