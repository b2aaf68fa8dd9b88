"""Exactly once: what a dead, late or second worker leaves, and what the next one makes of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from log_records import (
    DAY_MS,
    MemorySource,
    common,
    edge,
    line,
    make_contract,
    make_loader,
    record,
)

from telemetry_pipeline.ingest import ledger as ledger_module
from telemetry_pipeline.ingest.ledger import Claim, ClaimTerms, Landed, Ledger
from telemetry_pipeline.ingest.loader import IngestReport, Loader, new_session_id
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.base import Positions, Slice, SliceData, Source
from telemetry_pipeline.sources.otel_file import OtelFileSource
from telemetry_pipeline.warehouse.client import connect

NOW_MS = int(time.time() * 1000)
EVENTS = "raw.product_telemetry_events_storage"
LETTERS, COUNTS, TOUCHES = "raw.dead_letters", "ops.slice_counts", "ops.touches"
TERMS = ClaimTerms("another run", "contract", "statement", "1")


class Died(BaseException):
    """What a worker of these tests raises where another would be killed."""


class DiesAfterClaim(Loader):
    def _load(self, claim: Claim, cut: SliceData, report: IngestReport) -> None:
        raise Died


class DiesAfterStaging(Loader):
    def _land(self, claim: Claim) -> None:
        raise Died


class DiesAfterLanding(Loader):
    def _settle(self, wanted: Slice, attempt: int, landed: Landed) -> None:
        raise Died


class DiesBeforeTheResult(Loader):
    def _settle(self, wanted: Slice, attempt: int, landed: Landed) -> None:
        self._ledger.touch(wanted, attempt, "settled", self.timezone)
        raise Died


class WakesUpLate(Loader):
    def _land(self, claim: Claim) -> None:
        time.sleep(1.2)
        super()._land(claim)


@dataclass
class World:
    """One source of the shared warehouse, and workers on it."""

    client: Client
    project: Project
    source: MemorySource | Source

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.client, self.name)

    @contextmanager
    def worker(self, kind: type[Loader] = Loader, source: Source | None = None) -> Iterator[Loader]:
        """A loader with a connection and session of its own."""
        with closing(connect(self.project, session_id=new_session_id())) as client:
            made = make_loader(client, self.project, source or self.source, run_id=kind.__name__)
            yield kind(**vars(made))

    def run(self, kind: type[Loader] = Loader) -> IngestReport:
        with self.worker(kind) as loader:
            return loader.run(max_bytes=2**40)

    def let_one_die(self, kind: type[Loader]) -> None:
        with pytest.raises(Died):
            self.run(kind)

    def let_deadlines_pass(self) -> None:
        self.client.command(
            "ALTER TABLE ops.slice_intents UPDATE deadline = deadline - INTERVAL 10 MINUTE "
            f"WHERE source = '{self.name}'",
            settings={"mutations_sync": 2},
        )

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of a statement in which {source} stands for this source's name."""
        text = statement.replace("{source}", f"'{self.name}'").replace("{batches}", self.batches)
        return [tuple(row) for row in self.client.query(text).result_rows]

    @property
    def batches(self) -> str:
        return f"(SELECT batch_id FROM ops.slice_intents WHERE source = '{self.name}')"

    def results(self) -> list[dict[str, Any]]:
        statement = (
            f"SELECT * FROM ops.slice_results WHERE source = '{self.name}' "
            "ORDER BY partition, start_offset"
        )
        return list(self.client.query(statement).named_results())

    def rows(self, table: str) -> int:
        return int(self.ask(f"SELECT count() FROM {table} WHERE batch_id IN {{batches}}")[0][0])

    def event_ids(self) -> list[str]:
        return sorted(
            str(row[0])
            for row in self.ask(
                "SELECT event_id FROM raw.product_telemetry_events WHERE batch_id IN {batches}"
            )
        )

    def losses(self) -> list[tuple[Any, ...]]:
        return self.ask(
            "SELECT partition, start_offset, end_offset, reason FROM ops.source_losses "
            "WHERE source = {source}"
        )

    def states(self) -> list[tuple[int, str]]:
        """(attempt, state) of every attempt, as the ledger's view says it."""
        return [
            (attempt, str(state))
            for attempt, state in self.ask(
                "SELECT attempt, state FROM ops.ingest_ledger WHERE source = {source} "
                "ORDER BY attempt"
            )
        ]

    def touches(self) -> set[tuple[str, int, int]]:
        """(kind, attempt, records) of every touch."""
        return {
            (str(kind), attempt, records)
            for kind, attempt, records in self.ask(
                "SELECT kind, attempt, records FROM ops.touches WHERE batch_id IN {batches}"
            )
        }

    def assert_accounted_for(self) -> None:
        """received = accepted + duplicates + rejected + dropped, and the rows are there."""
        results = self.results()
        for row in results:
            parts = row["accepted"] + row["duplicates"]
            parts += sum(row["rejected"].values()) + sum(row["dropped"].values())
            assert row["received"] == parts, row
        assert len(results) == len({row["batch_id"] for row in results}), "one result a batch"
        assert self.rows(EVENTS) == sum(row["accepted"] for row in results)
        assert self.rows(LETTERS) == sum(sum(row["rejected"].values()) for row in results)


@pytest.fixture
def world(shared_client: Client, shared_project: Project, request: pytest.FixtureRequest) -> World:
    """A source that no other test uses, with one slice: 3 events on 2 days, a duplicate, an
    unknown event and one without consent."""
    source = MemorySource({"file": SLICE.data}, name=f"s{abs(hash(request.node.nodeid)) % 10**9}")
    # Event ids are looked for in the whole warehouse, whatever source they came from.
    for table in (EVENTS, "privacy.erasure_tombstones", "privacy.consent_withdrawals"):
        shared_client.command(f"TRUNCATE TABLE {table}")
    return World(shared_client, shared_project, source)


@dataclass(frozen=True)
class Emitted:
    """A slice's bytes and the event ids in it that are to be accepted."""

    ids: list[str]
    data: bytes = field(repr=False)


def _emit_slice() -> Emitted:
    attributes = [common(user) for user in range(3)]
    times = [NOW_MS - 3_600_000, NOW_MS - 3_700_000, NOW_MS - 8 * DAY_MS]
    records = [record("page_viewed", item, at) for item, at in zip(attributes, times, strict=True)]
    data = (
        line(*records, records[0])
        + line(record("never_heard_of", common(), times[0]))
        + line(record("page_viewed", common(consent__analytics="denied"), times[0]))
    )
    return Emitted(sorted(item["event.id"] for item in attributes), data)


SLICE = _emit_slice()
NOTHING = {"received": 0, "accepted": 0, "duplicates": 0, "rejected": {}, "dropped": {}}
WHOLE = {
    "received": 6,
    "accepted": 3,
    "duplicates": 1,
    "rejected": {"unknown_event": 1},
    "dropped": {"consent_denied": 1},
}


def assert_landed_once(world: World, *, attempt: int) -> None:
    (result,) = world.results()
    assert {name: result[name] for name in WHOLE} == WHOLE
    assert result["attempt"] == attempt
    assert world.event_ids() == SLICE.ids
    for table in (EVENTS, LETTERS, COUNTS):
        attempts = world.ask(f"SELECT DISTINCT attempt FROM {table} WHERE batch_id IN {{batches}}")
        assert attempts == [(attempt,)], table
    world.assert_accounted_for()


# -- the quiet life ----------------------------------------------------------------------------


def test_a_slice_lands_and_a_second_run_ingests_nothing(world: World) -> None:
    first, second = world.run(), world.run()

    assert_landed_once(world, attempt=1)
    assert (first.slices, first.received) == (1, 6)
    assert (second.slices, second.received, second.recovered) == (0, 0, 0)


def test_the_days_are_touched_with_the_rows_and_again_before_the_result(world: World) -> None:
    world.run()

    kinds = world.ask(
        "SELECT kind, day, attempt, records FROM ops.touches WHERE batch_id IN {batches} "
        "ORDER BY kind, day"
    )
    days = world.ask(
        f"SELECT toDate(occurred_at), toUInt64(count()) FROM {EVENTS} "
        "WHERE batch_id IN {batches} GROUP BY 1 ORDER BY 1"
    )
    assert len(days) >= 2
    landed = [("landed", day, 1, records) for day, records in days]
    assert kinds == landed + [("settled", day, 1, 0) for day, _ in days]
    (last_touch,), (finished,) = (
        world.ask("SELECT max(touched_at) FROM ops.touches WHERE batch_id IN {batches}")[0],
        world.ask("SELECT finished_at FROM ops.slice_results WHERE source = {source}")[0],
    )
    assert last_touch <= finished


def test_a_claim_names_everything_that_changes_the_outcome(world: World) -> None:
    world.run()

    contract = make_contract(world.project)
    ((*named, ends_after),) = world.ask(
        "SELECT contract_hash, statement_hash, pseudonym_key_id, bytes_hash, erasure_epoch, "
        "deadline > slice_time FROM ops.slice_intents WHERE source = {source}"
    )
    bytes_hash = world.source.cut("file").bytes_hash  # type: ignore[union-attr]
    assert named == [contract.contract_hash, contract.statement_hash, "1", bytes_hash, 0]
    assert ends_after
    kept = world.ask(
        "SELECT contract_json FROM ops.contracts FINAL WHERE contract_hash IN "
        "(SELECT contract_hash FROM ops.slice_intents WHERE source = {source})"
    )
    assert kept == [(contract.contract_json,)]


@pytest.mark.parametrize("data", [b"\n", b"\n\r\n \n"])
def test_a_slice_without_records_is_done_at_once(world: World, data: bytes) -> None:
    world.source.slices["file"] = data  # type: ignore[union-attr]

    world.run()
    world.let_deadlines_pass()
    again = world.run()

    (result,) = world.results()
    assert (result["received"], again.recovered) == (0, 0)


# -- a worker that died ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attempt"),
    [
        (DiesAfterClaim, 2),
        (DiesAfterStaging, 2),
        (DiesAfterLanding, 1),
        (DiesBeforeTheResult, 1),
    ],
)
def test_what_a_dead_worker_left_is_brought_to_its_end(
    world: World, kind: type[Loader], attempt: int
) -> None:
    world.let_one_die(kind)
    too_early = world.run()
    assert (too_early.slices, world.results()) == (0, []), "the deadline is not past"

    world.let_deadlines_pass()
    recovery = world.run()

    assert (recovery.recovered, recovery.received) == (1, 6)
    # Whoever settles owns attempt 2, whosever rows it settles.
    assert_landed_once(world, attempt=attempt)
    other = 3 - attempt
    assert dict(world.states()) == {attempt: "settled", other: "superseded"}
    assert world.losses() == []
    assert world.run().slices == 0
    assert {kind for kind, _, _ in world.touches()} == {"landed", "settled"}


def test_a_slice_whose_workers_die_twice_is_brought_to_its_end(world: World) -> None:
    for _ in range(2):
        world.let_one_die(DiesAfterStaging)
        world.let_deadlines_pass()

    world.run()

    assert_landed_once(world, attempt=3)


def test_the_ledger_view_says_what_became_of_every_attempt(world: World) -> None:
    world.let_one_die(DiesAfterStaging)
    assert world.states() == [(1, "open")]

    world.let_deadlines_pass()
    world.run()

    assert world.states() == [(1, "superseded"), (2, "settled")]


@pytest.mark.parametrize("table", [EVENTS, LETTERS, COUNTS, TOUCHES])
def test_a_batch_that_lacks_a_target_lands_anew(world: World, table: str) -> None:
    world.let_one_die(DiesAfterLanding)
    assert world.rows(table) > 0
    world.client.command(
        f"DELETE FROM {table} WHERE batch_id IN {world.batches}",
        settings={"lightweight_deletes_sync": 2},
    )
    world.let_deadlines_pass()

    world.run()

    assert_landed_once(world, attempt=2)
    touched = {(kind, attempt) for kind, attempt, _ in world.touches()}
    assert {("landed", 2), ("settled", 2)} <= touched
    # Where no event stood, none is removed.
    assert (("deleting", 2) in touched) == (table != EVENTS)


def test_a_heal_outlives_the_merge_of_what_it_removed(world: World) -> None:
    # The removed rows are of the earlier slice time, and the storage table keeps the earliest.
    world.let_one_die(DiesAfterLanding)
    world.client.command(
        f"DELETE FROM {COUNTS} WHERE batch_id IN {world.batches}",
        settings={"lightweight_deletes_sync": 2},
    )
    world.let_deadlines_pass()
    world.run()

    world.client.command(f"OPTIMIZE TABLE {EVENTS} FINAL")

    assert_landed_once(world, attempt=2)


def test_a_batch_that_lacks_one_partition_lands_anew(world: World) -> None:
    world.let_one_die(DiesAfterLanding)
    world.client.command(
        f"DELETE FROM {EVENTS} WHERE batch_id IN {world.batches} "
        "AND occurred_at < now() - INTERVAL 7 DAY",
        settings={"lightweight_deletes_sync": 2},
    )
    assert world.rows(EVENTS) == 2
    world.let_deadlines_pass()

    world.run()

    assert_landed_once(world, attempt=2)


def test_days_are_noted_before_rows_go(world: World) -> None:
    world.let_one_die(DiesAfterLanding)
    world.client.command(f"DELETE FROM {COUNTS} WHERE batch_id IN {world.batches}")
    world.let_deadlines_pass()
    noted: list[int] = []

    class Watched(Ledger):
        def remove(self, batch_id: int, before_attempt: int) -> None:
            noted.extend(records for kind, _, records in world.touches() if kind == "deleting")
            super().remove(batch_id, before_attempt)

    class Watching(Loader):
        @property
        def _ledger(self) -> Ledger:
            return Watched(self.client, self.source.name)

    world.run(Watching)

    assert noted, "the deleting touches were there before anything was removed"


def test_a_batch_that_lost_rows_after_its_check_gets_no_result(world: World) -> None:
    class LosesRows(Loader):
        def _settle(
            self, wanted: Slice, attempt: int, landed: Landed, *, deadline_ms: int = 0
        ) -> Landed:
            world.client.command(
                f"DELETE FROM {EVENTS} WHERE batch_id = {wanted.batch_id} "
                "AND occurred_at < now() - INTERVAL 7 DAY",
                settings={"lightweight_deletes_sync": 2},
            )
            return super()._settle(wanted, attempt, landed, deadline_ms=deadline_ms)

    with pytest.raises(DatabaseError, match="rows of the batch are missing"):
        world.run(LosesRows)

    assert world.results() == []
    world.let_deadlines_pass()
    world.run()
    assert_landed_once(world, attempt=2)


@pytest.mark.parametrize(
    ("mine_has_a_result", "attempt", "left"),
    [(False, 1, 0), (False, 2, 3), (True, 1, 3)],
    ids=["of the attempt", "of another attempt", "of a settled batch"],
)
def test_copies_are_given_up_by_an_attempt_without_a_result(
    world: World, mine_has_a_result: bool, attempt: int, left: int
) -> None:
    # The same three events under two batches, as when neither lookup saw the other's rows.
    world.let_one_die(DiesAfterLanding)
    mine = world.source.cut("file").slice  # type: ignore[union-attr]
    rival = Slice(world.name, "rival", 0, 0, 1)
    world.client.command(
        # Another session, so that no merge takes two rows for one before they are compared.
        f"INSERT INTO {EVENTS} SELECT * REPLACE ({rival.batch_id} AS batch_id, "
        f"session_id + 1 AS session_id) FROM (SELECT * FROM {EVENTS} "
        f"WHERE batch_id = {mine.batch_id})"
    )
    terms = replace(TERMS, run_id="the rival")
    assert world.ledger.claim(rival, 1, terms, bytes_hash="", tail_sha256="")
    if mine_has_a_result:
        world.ledger.finish(mine, 1, world.ledger.landed(mine.batch_id))

    world.ledger.yield_copies(mine, attempt, "UTC")

    ((kept,),) = world.ask(f"SELECT count() FROM {EVENTS} WHERE batch_id = {mine.batch_id}")
    ((theirs,),) = world.ask(f"SELECT count() FROM {EVENTS} WHERE batch_id = {rival.batch_id}")
    assert (kept, theirs) == (left, 3)


# -- bytes that are gone or changed ------------------------------------------------------------


def _gone(world: World) -> None:
    del world.source.slices["file"]  # type: ignore[union-attr]


def _changed(world: World) -> None:
    slices = world.source.slices  # type: ignore[union-attr]
    slices["file"] = slices["file"].replace(b"page_viewed", b"page_wiewed", 1)


@pytest.mark.parametrize("change", [_gone, _changed])
def test_bytes_that_never_landed_and_are_gone_are_a_recorded_loss(
    world: World, change: Callable[[World], None]
) -> None:
    world.let_one_die(DiesAfterClaim)
    world.let_deadlines_pass()
    change(world)

    report = world.run()

    assert (report.lost_slices, report.recovered) == (1, 0)
    assert world.losses() == [("file", 0, len(SLICE.data), "bytes_gone")]
    (result,) = world.results()
    assert {name: result[name] for name in ("attempt", *WHOLE)} == NOTHING | {"attempt": 2}
    assert world.event_ids() == []
    assert [state for _, state in world.states()] == ["superseded", "lost"]
    world.assert_accounted_for()
    world.let_deadlines_pass()
    assert world.run().lost_slices == 0, "it is not given up twice"


@pytest.mark.parametrize("change", [_gone, _changed])
def test_bytes_that_landed_whole_are_no_loss_when_they_are_gone(
    world: World, change: Callable[[World], None]
) -> None:
    world.let_one_die(DiesAfterLanding)
    world.let_deadlines_pass()
    change(world)

    world.run()

    assert_landed_once(world, attempt=1)
    assert world.losses() == []


@pytest.mark.parametrize("change", [_gone, _changed])
@pytest.mark.parametrize(
    ("table", "accepted", "rejected"),
    [(EVENTS, 0, 1), (LETTERS, 3, 0), (COUNTS, 3, 1), (TOUCHES, 3, 1)],
)
def test_of_a_torn_batch_whose_bytes_are_gone_the_rest_is_kept_and_counted(
    world: World,
    change: Callable[[World], None],
    table: str,
    accepted: int,
    rejected: int,
) -> None:
    world.let_one_die(DiesAfterLanding)
    world.client.command(
        f"DELETE FROM {table} WHERE batch_id IN {world.batches}",
        settings={"lightweight_deletes_sync": 2},
    )
    world.let_deadlines_pass()
    change(world)

    report = world.run()

    assert report.lost_slices == 1
    assert world.losses() == [("file", 0, len(SLICE.data), "bytes_gone")]
    assert "lost" in [state for _, state in world.states()]
    (result,) = world.results()
    assert (result["accepted"], sum(result["rejected"].values())) == (accepted, rejected)
    world.assert_accounted_for()
    world.let_deadlines_pass()
    assert world.run().slices == 0


# -- several workers ---------------------------------------------------------------------------


def claim(ledger: Ledger, cut: SliceData, attempt: int = 1) -> Claim | None:
    return ledger.claim(
        cut.slice, attempt, TERMS, bytes_hash=cut.bytes_hash, tail_sha256=cut.tail_sha256
    )


def test_of_many_claims_at_once_one_owns_the_slice(world: World) -> None:
    cut = world.source.cut("file")  # type: ignore[union-attr]
    claims: list[Claim | None] = []
    start = threading.Barrier(6)

    def compete() -> None:
        with closing(connect(world.project)) as client:
            ledger = Ledger(client, world.name)
            start.wait()
            claims.append(claim(ledger, cut))

    threads = [threading.Thread(target=compete) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(claims) == 6
    assert sum(made is not None for made in claims) == 1


def test_the_first_row_owns_a_slice_when_the_deduplication_window_is_past(world: World) -> None:
    cut = world.source.cut("file")  # type: ignore[union-attr]
    first = claim(world.ledger, cut)
    assert first is not None
    world.client.command(
        "INSERT INTO ops.slice_intents SELECT * REPLACE (generateUUIDv4() AS claim_id, "
        "end_offset + 1000 AS end_offset, 'another sha' AS bytes_hash, "
        "claimed_at + INTERVAL 1 SECOND AS claimed_at) "
        f"FROM ops.slice_intents WHERE source = '{world.name}'"
    )
    assert len(world.ask("SELECT 1 FROM ops.slice_intents WHERE source = {source}")) == 2

    assert world.ledger.positions()["file", 0].end == cut.slice.end
    (left,) = world.ledger.open_claims()
    assert (left.slice, left.bytes_hash) == (cut.slice, cut.bytes_hash)
    assert claim(world.ledger, cut) is None, "a third does not own it either"
    world.let_deadlines_pass()
    world.run()
    assert_landed_once(world, attempt=2)


def test_a_claim_that_lands_second_owns_nothing(world: World) -> None:
    # The token is of the claim's own insert: a row from before the window does not carry it.
    cut = world.source.cut("file")  # type: ignore[union-attr]
    world.client.command(
        "INSERT INTO ops.slice_intents (source, partition, epoch, start_offset, end_offset, "
        "attempt, batch_id, claim_id, claimed_at) "
        f"VALUES ('{world.name}', 'file', 0, 0, {cut.slice.end}, 1, {cut.slice.batch_id}, "
        "generateUUIDv4(), now64(6) - INTERVAL 1 DAY)"
    )

    assert claim(world.ledger, cut) is None
    assert len(world.ask("SELECT 1 FROM ops.slice_intents WHERE source = {source}")) == 2


def test_a_worker_that_wakes_up_past_its_deadline_lands_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "DEADLINE_SECONDS", 1)
        with pytest.raises(DatabaseError, match="slice deadline passed"):
            world.run(WakesUpLate)

    assert [world.rows(table) for table in (EVENTS, LETTERS, COUNTS, TOUCHES)] == [0, 0, 0, 0]
    world.let_deadlines_pass()
    world.run()
    assert_landed_once(world, attempt=2)


@pytest.mark.parametrize("kind", [DiesAfterClaim, DiesAfterLanding])
def test_a_slow_successor_does_not_touch_what_a_faster_one_healed(
    world: World, kind: type[Loader]
) -> None:
    world.let_one_die(kind)
    world.client.command(
        f"DELETE FROM {COUNTS} WHERE batch_id IN {world.batches}",
        settings={"lightweight_deletes_sync": 2},
    )
    world.let_deadlines_pass()

    class Overtaken(MemorySource):
        def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
            world.run()  # the faster one, from its own claim to its result
            return super().read_again(wanted, positions)

    slow = Overtaken(world.source.slices, world.name)  # type: ignore[union-attr]
    with world.worker(source=slow) as loader:
        report = loader.run(max_bytes=2**40)

    assert report.recovered == 0
    assert_landed_once(world, attempt=2)


def test_a_slow_successor_does_not_give_up_what_a_faster_one_healed(world: World) -> None:
    world.let_one_die(DiesAfterClaim)
    world.let_deadlines_pass()

    class OvertakenAndBlind(MemorySource):
        def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
            world.run()
            return None

    with world.worker(source=OvertakenAndBlind(name=world.name)) as loader:
        loader.run(max_bytes=2**40)

    assert_landed_once(world, attempt=2)
    assert world.losses() == []


def test_a_slice_that_fails_again_does_not_keep_new_ones_waiting(world: World) -> None:
    world.let_one_die(DiesAfterClaim)
    world.let_deadlines_pass()
    fresh = [common(user) for user in range(2)]
    world.source.slices["later"] = b"".join(  # type: ignore[union-attr]
        line(record("page_viewed", item, NOW_MS - 1000)) for item in fresh
    )

    class FailsAtTheFirst(Loader):
        def _land(self, claim: Claim) -> None:
            super()._land(
                replace(claim, deadline_ms=0) if claim.slice.partition == "file" else claim
            )

    with pytest.raises(Exception, match="1 slices stay open"):
        world.run(FailsAtTheFirst)

    assert [row["partition"] for row in world.results()] == ["later"]


def _file_world(world: World, folder: Path, slice_bytes: int) -> tuple[World, list[str]]:
    """A sink of 300 lines in three files, every tenth delivered twice."""
    folder.mkdir()
    ids, written = [], []
    for number in range(300):
        attributes = common(number % 7)
        ids.append(attributes["event.id"])
        written.append(line(record("page_viewed", attributes, NOW_MS - number * 60_000)))
        if number % 10 == 9:
            written.append(written[-5])
    for number, name in enumerate(("events-1-size.jsonl", "events-2-size.jsonl", "events.jsonl")):
        (folder / name).write_bytes(b"".join(written[number::3]))
    source = OtelFileSource(world.name, folder / "events.jsonl", slice_bytes=slice_bytes)
    return replace(world, source=source), sorted(ids)


def _claimed_ranges(world: World) -> Mapping[str, list[tuple[int, int]]]:
    ranges: dict[str, list[tuple[int, int]]] = {}
    for partition, start, end in world.ask(
        "SELECT DISTINCT partition, start_offset, end_offset FROM ops.slice_intents "
        "WHERE source = {source} ORDER BY partition, start_offset"
    ):
        ranges.setdefault(partition, []).append((start, end))
    return ranges


def _assert_no_hole_and_no_overlap(world: World) -> None:
    for ranges in _claimed_ranges(world).values():
        assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]


def test_a_claim_with_another_end_leaves_no_hole(world: World, tmp_path: Path) -> None:
    # One worker has cut half a file; another claims the first quarter of it meanwhile.
    world, ids = _file_world(world, tmp_path / "sink", slice_bytes=30_000)
    source = world.source
    assert isinstance(source, OtelFileSource)
    short = OtelFileSource(world.name, source._active, slice_bytes=12_000)

    class Beaten(OtelFileSource):
        beaten_at: list[SliceData] = []  # noqa: RUF012

        def read_new(self, positions: Positions) -> Iterator[SliceData]:
            for cut in super().read_new(positions):
                if not self.beaten_at:
                    first = next(short.read_new(positions))
                    assert first.slice.start == cut.slice.start
                    assert first.slice.end < cut.slice.end
                    assert claim(world.ledger, first) is not None
                    self.beaten_at.append(first)
                yield cut

    with world.worker(source=Beaten(world.name, source._active, slice_bytes=30_000)) as loader:
        loader.run(max_bytes=2**40)
    world.let_deadlines_pass()
    world.run()

    _assert_no_hole_and_no_overlap(world)
    assert world.event_ids() == ids
    world.assert_accounted_for()


def test_loaders_at_once_give_every_event_exactly_once(world: World, tmp_path: Path) -> None:
    world, ids = _file_world(world, tmp_path / "sink", slice_bytes=12_000)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            world.run()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    _assert_no_hole_and_no_overlap(world)
    assert len(world.results()) > 10
    assert world.event_ids() == ids
    assert sum(row["received"] for row in world.results()) == 330
    assert world.run().slices == 0


# -- what changed between a claim and its replay -----------------------------------------------


def test_a_replay_is_judged_by_the_catalogue_of_its_own_time(world: World) -> None:
    world.let_one_die(DiesAfterClaim)
    world.let_deadlines_pass()
    billing = world.project.catalog_dir / "events" / "billing.yaml"
    before = billing.read_text()
    billing.write_text(before.replace("name: trial_started", "name: never_heard_of"))
    try:
        # never_heard_of lacks trial.days, so it is known now, and incomplete.
        world.run()
    finally:
        billing.write_text(before)

    (result,) = world.results()
    assert result["rejected"] == {"missing_attribute": 1}
    hashes = world.ask(
        "SELECT attempt, contract_hash FROM ops.slice_intents WHERE source = {source} "
        "ORDER BY attempt"
    )
    assert [attempt for attempt, _ in hashes] == [1, 2]
    assert hashes[0][1] != hashes[1][1]
    kept = world.ask("SELECT DISTINCT contract_hash FROM ops.contracts")
    assert {contract for _, contract in hashes} <= {contract for (contract,) in kept}


@pytest.mark.parametrize("kind", [DiesAfterClaim, DiesAfterLanding])
@pytest.mark.parametrize(
    ("table", "reason"),
    [("erasure_tombstones", "erased"), ("consent_withdrawals", "consent_withdrawn")],
)
def test_a_replay_does_not_bring_back_a_person(
    world: World, kind: type[Loader], table: str, reason: str
) -> None:
    world.let_one_die(kind)
    world.client.command(
        f"DELETE FROM {COUNTS} WHERE batch_id IN {world.batches}",
        settings={"lightweight_deletes_sync": 2},
    )
    world.let_deadlines_pass()
    with world.worker() as loader:
        key = loader.keys.parameters()["secret_key_user"]
    world.client.command(
        f"INSERT INTO privacy.{table} (subject_kind, subject) SELECT 'user', "
        "reinterpretAsUInt64(substring(HMAC('SHA256', {id:String}, {secret_key:String}), 1, 8))",
        {"id": edge("user", 0), "secret_key": key},
    )

    world.run()

    (result,) = world.results()
    # The first of the three events is theirs, and so is its repetition.
    assert result["dropped"] == {"consent_denied": 1, reason: 2}
    assert result["accepted"] == 2
    assert len(world.event_ids()) == 2
    world.assert_accounted_for()


# -- SIGKILL -----------------------------------------------------------------------------------


def test_sigkill_at_any_moment_neither_loses_nor_doubles_an_event(
    world: World, tmp_path: Path
) -> None:
    sink = world.project.sink_dir
    _, ids = _file_world(world, tmp_path / "made", slice_bytes=1)
    for file in (tmp_path / "made").iterdir():
        file.rename(sink / file.name)
    world = replace(world, source=MemorySource(name="app_events"))
    random_ = random.Random(7)
    killed = 0
    for number in range(6):
        process = _start_ingest()
        # The first ones are let far enough to have claimed; the later ones die anywhere.
        _wait_for_claims(world, 2 * number + 1)
        time.sleep(random_.uniform(0, 0.25))
        killed += process.poll() is None
        process.kill()
        process.communicate()

    ends = time.monotonic() + 60
    while world.ledger.open_claims() or len(world.event_ids()) < len(ids):
        assert time.monotonic() < ends, "the slices of the killed were never finished"
        process = _start_ingest()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        time.sleep(0.5)

    assert killed == 6
    assert world.event_ids() == ids
    assert world.losses() == []
    _assert_no_hole_and_no_overlap(world)
    world.assert_accounted_for()
    results = world.results()
    assert sum(row["received"] for row in results) == 330
    assert sum(row["duplicates"] for row in results) == 30
    assert json.loads(out.splitlines()[-1])["waiting"] == 0


def _all_claims(world: World) -> list[tuple[Any, ...]]:
    return world.ask("SELECT start_offset FROM ops.slice_intents WHERE source = {source}")


def _start_ingest() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("killed_ingest.py"), "12000", "3", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_claims(world: World, claims: int) -> None:
    ends = time.monotonic() + 30
    while len(_all_claims(world)) < claims:
        assert time.monotonic() < ends
        time.sleep(0.02)
