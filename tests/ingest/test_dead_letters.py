"""Dead letters: after a catalogue fix a replay lands each event exactly once, whatever happens."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.httpclient import HttpClient
from fresh import REPOSITORY
from log_records import MemorySource, common, edge, line, make_loader, record

from telemetry_pipeline.assets import checks
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.ingest import dead_letters, run
from telemetry_pipeline.ingest.dead_letters import Choice, ReplayReport
from telemetry_pipeline.ingest.loader import new_session_id
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.base import Slice
from telemetry_pipeline.sources.dead_letters import DeadLetterSource
from telemetry_pipeline.warehouse.client import connect

HOUR_AGO = int(time.time() * 1000) - 3_600_000
STORAGE = "raw.product_telemetry_events_storage"
UNKNOWN = Choice(reasons=("unknown_event",))
ALL = Choice(everything=True)
NEW_EVENT = """
  - name: {name}
    brief: An event that was forgotten.
    stability: stable
    attributes:
      - ref_group: event.common
    annotations:
      class: business
      owner: growth
      purpose: Tests.
      schema_version: 2026-05-telemetry-v1
"""


class Died(BaseException):
    """What a process of these tests raises where another would be killed."""


@dataclass
class Letters:
    """A warehouse with dead letters in it, and what users do with them."""

    client: Client
    project: Project
    batches: int = 0

    def ingest(self, *lines: bytes, source: str = "app_events") -> None:
        """Land these lines as one slice."""
        self.batches += 1
        slices = MemorySource({f"file {self.batches}": b"".join(lines)}, name=source)
        with closing(connect(self.project, session_id=new_session_id())) as client:
            make_loader(client, self.project, slices).run(max_bytes=2**40)

    def reject(self, count: int, name: str = "report_exported") -> list[str]:
        """Land `count` events that are not in the catalogue; gives their ids."""
        sent = [common(number) for number in range(count)]
        self.ingest(*(line(record(name, item, HOUR_AGO)) for item in sent))
        return sorted(item["event.id"] for item in sent)

    def mend(self, name: str = "report_exported") -> None:
        """Take an event into the catalogue."""
        file = self.project.catalog_dir / "events" / "billing.yaml"
        file.write_text(file.read_text() + NEW_EVENT.format(name=name))

    def replay(self, choice: Choice = UNKNOWN) -> ReplayReport:
        (report,), complaint = dead_letters.replay(self.project, choice, "test")
        assert complaint is None
        return report

    def resume(self) -> list[ReplayReport]:
        return dead_letters.replay(self.project, None, "test")[0]

    def let_deadlines_pass(self) -> None:
        self.client.command(
            "ALTER TABLE ops.slice_intents UPDATE deadline = deadline - INTERVAL 10 MINUTE WHERE 1",
            settings={"mutations_sync": 2},
        )

    def take_away(self, condition: str) -> None:
        """What the end of the retention does to letters."""
        self.client.command(
            f"ALTER TABLE raw.dead_letters DELETE WHERE {condition}", settings={"mutations_sync": 2}
        )

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.client.query(statement).result_rows]

    def event_ids(self) -> list[str]:
        return sorted(
            str(row[0]) for row in self.ask("SELECT event_id FROM raw.product_telemetry_events")
        )

    def states(self) -> dict[tuple[str, str], int]:
        """Letters by reason and state."""
        found: dict[tuple[str, str], int] = {}
        for row in dead_letters.list_letters(self.project, ALL):
            key = (row["reason"], row["state"])
            found[key] = found.get(key, 0) + row["letters"]
        return found

    def assert_exactly_once(self, ids: list[str]) -> None:
        """These events are there once, as rows and in the ledger's books, and every check holds."""
        assert self.event_ids() == sorted(ids)
        assert self.ask(f"SELECT count() FROM {STORAGE}") == [(len(ids),)]
        assert self.ask("SELECT sum(accepted) FROM ops.slice_results") == [(len(ids),)]
        twice = "SELECT batch_id FROM ops.slice_results GROUP BY batch_id HAVING count() > 1"
        assert self.ask(twice) == []
        assert [check.__name__ for check in _all_checks() if not check().passed] == []  # type: ignore[attr-defined]


def _all_checks() -> list[Callable[[], dg.AssetCheckResult]]:
    return [
        checks.received_is_accounted_for,
        checks.accepted_rows_are_present,
        checks.events_are_unique,
        checks.nothing_was_lost,
        checks.dead_letters_are_encrypted,
        checks.rejected_records_are_kept,
    ]


@pytest.fixture
def letters(client: Client, project: Project) -> Letters:
    return Letters(client, project)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DeadLetterSource", partial(DeadLetterSource, slice_items=3))


@contextmanager
def dies_after_write(number: int) -> Iterator[list[int]]:
    """The process ends after its write number `number` (from 0); gives the writes it made.

    What only reads changes nothing, so this is every place at which a death can differ.
    """
    made: list[int] = []

    def ending(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: HttpClient, *arguments: Any, **named: Any) -> Any:
            done = original(self, *arguments, **named)
            text = str(arguments[0] if arguments else "").lstrip()
            reads = original.__name__ == "command" and text.upper().startswith("SELECT")
            if not reads:
                made.append(len(made))
                if len(made) - 1 == number:
                    raise Died
            return done

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("command", "insert", "raw_insert"):
            patch.setattr(HttpClient, name, ending(getattr(HttpClient, name)))
        yield made


# -- a catalogue fix ---------------------------------------------------------------------------


def test_after_a_catalogue_fix_a_replay_lands_each_event_exactly_once(letters: Letters) -> None:
    ids = letters.reject(5)
    assert letters.states() == {("unknown_event", "waiting"): 5}
    letters.mend()

    report = letters.replay()

    assert (report.items, report.judged, report.received, report.accepted) == (5, 5, 5, 5)
    assert (report.gone, report.lost, report.waiting, report.duplicates) == (0, 0, 0, 0)
    letters.assert_exactly_once(ids)
    assert letters.states() == {("unknown_event", "replayed"): 5}


def test_what_was_replayed_is_not_replayed_again(letters: Letters) -> None:
    ids = letters.reject(3)
    letters.mend()
    letters.replay()

    assert dead_letters.replay(letters.project, UNKNOWN, "test") == ([], None)
    assert dead_letters.select(letters.project, UNKNOWN).replayed == 3
    letters.assert_exactly_once(ids)


def test_many_slices_land_each_event_exactly_once(letters: Letters, small_slices: None) -> None:
    ids = letters.reject(10)
    letters.mend()

    assert letters.replay().accepted == 10

    letters.assert_exactly_once(ids)
    results = "SELECT count() FROM ops.slice_results WHERE source = 'dead_letters'"
    assert letters.ask(results) == [(4,)]


def test_only_the_events_that_were_named_are_replayed(letters: Letters) -> None:
    ids = letters.reject(2, "report_exported")
    letters.reject(3, "never_heard_of")
    letters.mend()

    report = letters.replay(Choice(events=("report_exported",)))

    assert (report.items, report.accepted) == (2, 2)
    letters.assert_exactly_once(ids)
    assert letters.states()["unknown_event", "waiting"] == 3


def test_what_is_still_wrong_is_a_new_letter_of_the_same_origin(letters: Letters) -> None:
    letters.reject(1, "page_viewed_wrongly")
    ids = letters.reject(2)
    first_seen = letters.ask("SELECT min(ingested_at) FROM raw.dead_letters")[0][0]
    letters.mend()

    report = letters.replay()

    assert (report.accepted, report.rejected) == (2, {"unknown_event": 1})
    letters.assert_exactly_once(ids)
    (again,) = [
        row for row in dead_letters.list_letters(letters.project, ALL) if row["state"] == "waiting"
    ]
    assert (again["source"], again["letters"]) == ("app_events", 1)
    assert again["first_seen"] == first_seen < again["last_seen"]
    # And it can be replayed once more, as a letter of its source.
    letters.mend("page_viewed_wrongly")
    assert letters.replay(Choice(sources=("app_events",))).accepted == 1


def test_an_event_without_an_id_is_the_same_event_when_it_is_delivered_again(
    letters: Letters,
) -> None:
    sent = line(record("report_exported", common(event__id=None), HOUR_AGO))
    letters.ingest(sent)
    letters.mend()
    letters.replay()

    letters.ingest(sent)

    assert len(letters.event_ids()) == 1
    letters.assert_exactly_once(letters.event_ids())


@pytest.mark.parametrize("first", ["delivered", "replayed"])
def test_an_event_that_also_arrives_by_itself_is_there_once(letters: Letters, first: str) -> None:
    item = common()
    sent = line(record("report_exported", item, HOUR_AGO))
    letters.ingest(sent)
    letters.mend()

    if first == "delivered":
        letters.ingest(sent)
        assert letters.replay().duplicates == 1
    else:
        assert letters.replay().accepted == 1
        letters.ingest(sent)

    letters.assert_exactly_once([item["event.id"]])


def test_an_event_that_was_rejected_twice_is_there_once(
    letters: Letters, small_slices: None
) -> None:
    item = common()
    sent = line(record("report_exported", item, HOUR_AGO))
    for _ in range(5):
        letters.ingest(sent)
    letters.mend()

    report = letters.replay()

    assert (report.accepted, report.duplicates) == (1, 4)
    letters.assert_exactly_once([item["event.id"]])


# -- times and people --------------------------------------------------------------------------


def test_an_event_without_a_time_keeps_the_time_it_arrived_at(letters: Letters) -> None:
    # Text that looks like the field must not be taken for it.
    service = '"observedTimeUnixNano":"1"'
    letters.ingest(line(record("report_exported", common(), None), service=service))
    arrived = letters.ask("SELECT ingested_at FROM raw.dead_letters")
    letters.replay()  # still unknown: the time is not that of this replay
    letters.mend()
    time.sleep(0.01)

    letters.replay()

    occurred = letters.ask("SELECT occurred_at, source FROM raw.product_telemetry_events")
    assert occurred == [(arrived[0][0], service)]


def test_an_event_with_an_observed_time_keeps_that(letters: Letters) -> None:
    letters.ingest(line(record("report_exported", common(), None, HOUR_AGO)))
    letters.mend()

    letters.replay()

    times = letters.ask("SELECT toUnixTimestamp64Milli(occurred_at) FROM " + STORAGE)
    assert times == [(HOUR_AGO,)]


@pytest.mark.parametrize(
    ("table", "reason"),
    [("erasure_tombstones", "erased"), ("consent_withdrawals", "consent_withdrawn")],
)
def test_a_replay_does_not_bring_back_a_person(letters: Letters, table: str, reason: str) -> None:
    letters.reject(3)
    letters.mend()
    letters.client.command(
        f"INSERT INTO privacy.{table} (subject_kind, subject) SELECT 'user', "
        "reinterpretAsUInt64(substring(HMAC('SHA256', {id:String}, {secret_key:String}), 1, 8))",
        {
            "id": edge("user", 1),
            "secret_key": read_key("pseudonym", letters.project.keys_dir).derive("user"),
        },
    )

    report = letters.replay()

    assert (report.accepted, report.dropped) == (2, {reason: 1})
    letters.assert_exactly_once(letters.event_ids())


# -- odd payloads ------------------------------------------------------------------------------

ODD = {
    "a word": b"panic",
    "no UTF-8": b"\xff\xfe{\xc3\x28",
    "NUL": b"a\x00b",
    "tabs and backslashes": b"a\tb\\tc\\\\n\\",
    "half a line": b'{"resourceLogs":[{"resource":',
    "a lone surrogate": b'{"a":"\\ud800',
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_line_that_cannot_be_decoded_stays_as_it_is(letters: Letters, odd: bytes) -> None:
    letters.ingest(odd + b"\n")

    report = letters.replay(ALL)

    assert (report.received, report.rejected) == (1, {"undecodable": 1})
    assert _payloads(letters) == {odd}
    letters.assert_exactly_once([])


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"enduser.pseudo.id": 'a raw id\t"\\'}, "raw_identifier"),
        ({"ui.feature": {"doubleValue": "NaN"}}, "invalid_attribute"),
        ({"x.list": {"arrayValue": {"values": [{"stringValue": "a\tb"}]}}}, "unknown_event"),
    ],
)
def test_what_stays_wrong_is_judged_as_before(
    letters: Letters, attributes: dict[str, Any], reason: str
) -> None:
    name = "never_heard_of" if reason == "unknown_event" else "feature_viewed"
    letters.ingest(line(record(name, common() | attributes, HOUR_AGO)))

    for _ in range(2):
        assert letters.replay(ALL).rejected == {reason: 1}

    assert len(_payloads(letters)) == 1, "the payload is the same each time"
    assert letters.states() == {(reason, "replayed"): 2, (reason, "waiting"): 1}


def test_an_id_that_was_used_for_another_event_stays_a_conflict(letters: Letters) -> None:
    first, second = common(1), common(2)
    second["event.id"] = first["event.id"]
    letters.ingest(
        line(record("page_viewed", first, HOUR_AGO)),
        line(record("page_viewed", second, HOUR_AGO - 60_000)),
    )

    for _ in range(2):
        assert letters.replay(ALL).rejected == {"event_id_conflict": 1}

    letters.assert_exactly_once([first["event.id"]])


def test_a_line_without_records_stays_so(letters: Letters) -> None:
    letters.ingest(b'{"resourceSpans": [{"a": "b"}]}\n')

    assert letters.replay(ALL).rejected == {"not_logs": 1}
    assert _payloads(letters) == {b'{"resourceSpans": [{"a": "b"}]}'}


def _payloads(letters: Letters) -> set[bytes]:
    """What is in the letters, whatever their batch."""
    key = run.payload_key(letters.project)
    return {
        bytes.fromhex(row[0])
        for row in letters.client.query(
            "SELECT hex(decrypt('aes-256-gcm', payload_encrypted, "
            "unhex({secret_key_dead_letter:String}), payload_nonce, toString(batch_id))) "
            "FROM raw.dead_letters",
            key.parameters(),
        ).result_rows
    }


# -- death -------------------------------------------------------------------------------------


def test_whatever_write_a_replay_dies_after_each_event_lands_exactly_once(
    letters: Letters,
) -> None:
    letters.mend("report_exported")
    ids: list[str] = []
    deaths = 0
    for number in range(100):
        # Rejected because it has a name of its own; then that name is mended.
        name = f"forgotten_{number}"
        ids += letters.reject(3, name)
        letters.mend(name)
        choice = Choice(events=(name,))
        with dies_after_write(number) as made:
            try:
                dead_letters.replay(letters.project, choice, "test")
                break
            except Died:
                deaths += 1
        letters.let_deadlines_pass()
        letters.resume()
        dead_letters.replay(letters.project, choice, "test")  # a death before the freeze
        assert letters.event_ids() == sorted(ids), f"after write {number}"

    assert deaths == len(made) >= 9
    letters.assert_exactly_once(ids)
    assert set(letters.states()) == {("unknown_event", "replayed")}


def test_items_without_their_replay_count_for_nothing(letters: Letters) -> None:
    letters.reject(2)
    with dies_after_write(0), pytest.raises(Died):
        dead_letters.freeze(letters.project, UNKNOWN)

    assert letters.ask("SELECT count() FROM ops.dead_letter_replay_items") == [(2,)]
    assert letters.resume() == []
    assert letters.states() == {("unknown_event", "waiting"): 2}


def test_sigkill_at_any_moment_neither_loses_nor_doubles_an_event(letters: Letters) -> None:
    ids = letters.reject(60)
    letters.mend()
    random_ = random.Random(5)
    killed = 0
    for number in range(5):
        process = _dlq("replay", "--all" if number == 0 else "--resume", "--json")
        _wait_for_claims(letters, 2 * number + 1)
        time.sleep(random_.uniform(0, 0.15))
        killed += process.poll() is None
        process.kill()
        process.communicate()

    process = _dlq("replay", "--resume", "--json")
    out, err = process.communicate(timeout=120)

    assert process.returncode == 0, err
    assert killed == 5
    (report,) = json.loads(out)["replays"]
    assert (report["items"], report["accepted"], report["waiting"]) == (60, 60, 0)
    letters.assert_exactly_once(ids)


def _dlq(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, Path(__file__).with_name("killed_replay.py"), "4", "2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_claims(letters: Letters, claims: int) -> None:
    ends = time.monotonic() + 60
    while letters.ask("SELECT count() FROM ops.slice_intents WHERE source = 'dead_letters'") < [
        (claims,)
    ]:
        assert time.monotonic() < ends
        time.sleep(0.02)


# -- several at once ---------------------------------------------------------------------------


def test_two_replays_of_the_same_letters_at_once_land_each_event_once(
    letters: Letters, small_slices: None
) -> None:
    items = [common(number) for number in range(6)]
    for _ in range(3):  # each event in three letters: every slice has copies of other slices'
        letters.ingest(*(line(record("report_exported", item, HOUR_AGO)) for item in items))
    letters.mend()
    start, failures = threading.Barrier(2), []

    def work() -> None:
        start.wait()
        try:
            dead_letters.replay(letters.project, UNKNOWN, "test")
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    letters.assert_exactly_once([item["event.id"] for item in items])


def test_nothing_new_is_read_while_another_slice_may_be_landing(
    letters: Letters, small_slices: None
) -> None:
    letters.reject(6)
    dead_letters.freeze(letters.project, ALL)
    with dies_after_write(_write_of_the_claim(letters)), pytest.raises(Died):
        list(dead_letters.land_replays(letters.project, "test"))

    assert run.ingest(letters.project, "dead_letters", "test").slices == 0
    letters.let_deadlines_pass()
    report = run.ingest(letters.project, "dead_letters", "test")
    assert (report.slices, report.recovered, report.waiting) == (2, 1, 0)


def _write_of_the_claim(letters: Letters) -> int:
    """After how many writes of a run the first slice is claimed."""
    for number in range(30):
        with dies_after_write(number), pytest.raises(Died):
            list(dead_letters.land_replays(letters.project, "test"))
        claimed = letters.ask("SELECT count() FROM ops.slice_intents WHERE source = 'dead_letters'")
        if claimed != [(0,)]:
            letters.client.command("TRUNCATE TABLE ops.slice_intents")
            return number
    raise AssertionError("no run claimed a slice")


# -- letters that go ---------------------------------------------------------------------------


def test_letters_that_end_before_they_are_read_are_counted(
    letters: Letters, small_slices: None
) -> None:
    ids = letters.reject(8)
    letters.mend()
    replay_id, _ = dead_letters.freeze(letters.project, UNKNOWN)
    assert replay_id is not None
    # The first, one in the middle of a slice, and the last.
    for number in (0, 4, 7):
        letters.take_away(
            "source_position IN (SELECT source_position FROM ops.dead_letter_replay_items "
            f"WHERE number = {number})"
        )

    (report,) = letters.resume()

    assert (report.items, report.judged, report.gone, report.lost) == (8, 5, 3, 0)
    assert report.accepted == 5
    assert set(letters.event_ids()) < set(ids)
    assert len(letters.event_ids()) == 5
    assert checks.nothing_was_lost().passed
    assert checks.received_is_accounted_for().passed


def test_letters_that_end_in_the_middle_of_a_crash_lose_no_other(letters: Letters) -> None:
    letters.reject(4)
    letters.mend()
    dead_letters.freeze(letters.project, UNKNOWN)
    number = _write_of_the_claim(letters)
    with dies_after_write(number), pytest.raises(Died):
        list(dead_letters.land_replays(letters.project, "test"))
    letters.let_deadlines_pass()
    letters.take_away(
        "source_position IN "
        "(SELECT source_position FROM ops.dead_letter_replay_items WHERE number = 1)"
    )

    (report,) = letters.resume()

    assert (report.items, report.judged, report.lost, report.waiting) == (4, 0, 4, 0)
    assert not checks.nothing_was_lost().passed, "it is recorded"
    assert letters.states() == {("unknown_event", "waiting"): 3}
    assert letters.replay().accepted == 3
    assert len(letters.event_ids()) == 3


def test_letters_at_the_end_of_their_retention_are_left(letters: Letters) -> None:
    letters.reject(2)
    letters.client.command(
        "INSERT INTO raw.dead_letters SELECT * REPLACE (source_position + 1000 AS source_position, "
        "ingested_at - INTERVAL 14 DAY + INTERVAL 5 MINUTE AS ingested_at) FROM raw.dead_letters"
    )

    selection = dead_letters.select(letters.project, ALL)

    assert (selection.taken, selection.ending) == ({"unknown_event": 2}, 2)
    assert letters.replay(ALL).items == 2


# -- keys --------------------------------------------------------------------------------------


def _write_key(letters: Letters, text: str) -> str:
    file = letters.project.keys_dir / "dead_letter.key"
    before = file.read_text()
    file.write_text(text)
    return before


def test_letters_under_another_key_wait_and_the_others_are_replayed(letters: Letters) -> None:
    old = letters.reject(2)
    key = _write_key(letters, f"2:{'a1' * 32}")
    new = letters.reject(3)
    letters.mend()

    (report,), complaint = dead_letters.replay(letters.project, UNKNOWN, "test")

    assert (report.items, report.accepted) == (3, 3)
    assert complaint is not None
    assert "2 under key id 1" in complaint
    assert "TELEMETRY_KEY_DEAD_LETTER" in complaint
    letters.assert_exactly_once(new)
    _write_key(letters, key)
    assert letters.replay().accepted == 2
    letters.assert_exactly_once(old + new)


def test_a_key_that_was_replaced_under_its_id_opens_nothing(letters: Letters) -> None:
    letters.reject(2)
    _write_key(letters, f"1:{'a1' * 32}")

    reports, complaint = dead_letters.replay(letters.project, UNKNOWN, "test")

    assert reports == []
    assert complaint is not None
    assert "2 under the current id, but not with its key" in complaint
    assert letters.states() == {("unknown_event", "waiting"): 2}


def test_a_replay_cut_off_before_the_key_changed_waits_for_its_key(letters: Letters) -> None:
    ids = letters.reject(3)
    letters.mend()
    dead_letters.freeze(letters.project, UNKNOWN)
    with dies_after_write(_write_of_the_claim(letters)), pytest.raises(Died):
        list(dead_letters.land_replays(letters.project, "test"))
    letters.let_deadlines_pass()
    key = _write_key(letters, f"2:{'a1' * 32}")

    with pytest.raises(TelemetryError, match="under id 1: put that key into"):
        letters.resume()

    assert letters.ask("SELECT count() FROM ops.source_losses") == [(0,)]
    _write_key(letters, key)
    letters.let_deadlines_pass()
    letters.resume()
    letters.assert_exactly_once(ids)


# -- show --------------------------------------------------------------------------------------


def test_a_letter_that_is_shown_is_recorded_with_who_and_when(letters: Letters) -> None:
    letters.ingest(line(record("never_heard_of", common(7), HOUR_AGO)))
    (row,) = dead_letters.list_each(letters.project, ALL, 5)

    shown = dead_letters.show_letter(letters.project, row["letter"])

    assert "never_heard_of" in json.dumps(shown.payload)
    assert edge("user", 7) in json.dumps(shown.payload)
    (entry,) = letters.ask(
        "SELECT os_user, concat(toString(batch_id), '-', toString(source_position)), "
        "abs(dateDiff('second', accessed_at, now64(6))) < 60 FROM ops.dead_letter_access"
    )
    assert entry == (dead_letters.os_user(), row["letter"], True)


def test_a_letter_that_does_not_open_says_which_key_and_the_attempt_is_recorded(
    letters: Letters,
) -> None:
    letters.reject(1)
    (row,) = dead_letters.list_each(letters.project, ALL, 5)
    _write_key(letters, f"2:{'a1' * 32}")

    with pytest.raises(TelemetryError, match="encrypted under id 1"):
        dead_letters.show_letter(letters.project, row["letter"])

    assert letters.ask("SELECT count() FROM ops.dead_letter_access") == [(1,)]


@pytest.mark.parametrize("letter", ["1-2", "x", "99999999999999999999-1", ""])
def test_a_letter_that_is_not_there_is_one_clear_line(letters: Letters, letter: str) -> None:
    with pytest.raises(TelemetryError, match="dead letter"):
        dead_letters.show_letter(letters.project, letter)


# -- purge -------------------------------------------------------------------------------------


def test_a_purge_removes_what_was_chosen_and_the_ledger_keeps_how_many(letters: Letters) -> None:
    letters.reject(4)
    letters.ingest(b"garbage\n", b"more garbage\n")

    assert dead_letters.purge(letters.project, Choice(reasons=("undecodable",))) == 2

    assert letters.states() == {("unknown_event", "waiting"): 4}
    assert letters.ask("SELECT count() FROM raw.dead_letters") == [(4,)]
    kept = letters.ask("SELECT kind, sum(records) FROM ops.ledger_adjustments GROUP BY kind")
    assert kept == [("letters_purged", 2)]
    letters.assert_exactly_once([])


def test_a_purge_that_dies_anywhere_is_finished_by_the_next_and_counts_once(
    letters: Letters,
) -> None:
    for number in range(20):
        letters.reject(2)
        with dies_after_write(number) as made:
            try:
                dead_letters.purge(letters.project, ALL)
                break
            except Died:
                assert checks.rejected_records_are_kept().passed, f"after write {number}"
    assert len(made) == number == 3

    assert letters.ask("SELECT count() FROM raw.dead_letters") == [(0,)]
    counted = letters.ask("SELECT sum(records) FROM ops.ledger_adjustments")
    assert counted == [(2 * (number + 1),)]
    letters.assert_exactly_once([])


def test_letters_that_a_replay_holds_are_not_purged(letters: Letters) -> None:
    ids = letters.reject(3)
    letters.mend()
    dead_letters.freeze(letters.project, UNKNOWN)

    assert dead_letters.purgeable(letters.project, ALL) == (0, 3)
    assert dead_letters.purge(letters.project, ALL) == 0

    letters.resume()
    assert dead_letters.purge(letters.project, ALL) == 3
    letters.assert_exactly_once(ids)


def test_letters_of_an_unfinished_slice_are_not_seen(letters: Letters) -> None:
    letters.reject(2)
    letters.client.command("TRUNCATE TABLE ops.slice_results")

    assert dead_letters.list_letters(letters.project, ALL) == []
    assert dead_letters.purge(letters.project, ALL) == 0
    assert dead_letters.replay(letters.project, ALL, "test") == ([], None)


def test_the_check_fails_when_letters_go_off_the_record(letters: Letters) -> None:
    letters.reject(2)
    assert checks.rejected_records_are_kept().passed

    letters.client.command("DELETE FROM raw.dead_letters WHERE source_position < 20000000")

    assert not checks.rejected_records_are_kept().passed


# -- filters and policy ------------------------------------------------------------------------


@pytest.mark.parametrize("use", [dead_letters.freeze, dead_letters.purge])
def test_nothing_is_chosen_without_a_filter(
    letters: Letters, use: Callable[[Project, Choice], object]
) -> None:
    letters.reject(1)

    with pytest.raises(TelemetryError, match="--all"):
        use(letters.project, Choice())

    assert letters.states() == {("unknown_event", "waiting"): 1}


def test_filters_leave_out_what_does_not_meet_them(letters: Letters) -> None:
    letters.reject(1)
    letters.ingest(b"garbage\n", source="other")
    ((batch,),) = letters.ask("SELECT batch_id FROM raw.dead_letters WHERE source_name = 'other'")
    ((middle,),) = letters.ask(
        "SELECT max(ingested_at) FROM raw.dead_letters WHERE source_name = 'other'"
    )
    moment = middle.replace(tzinfo=UTC)

    def reasons(choice: Choice) -> set[str]:
        return {row["reason"] for row in dead_letters.list_letters(letters.project, choice)}

    assert reasons(Choice(reasons=("undecodable",))) == {"undecodable"}
    assert reasons(Choice(sources=("app_events",))) == {"unknown_event"}
    assert reasons(Choice(batches=(batch,))) == {"undecodable"}
    assert reasons(Choice(since=moment)) == {"undecodable"}
    assert reasons(Choice(until=moment)) == {"unknown_event"}
    assert reasons(Choice(reasons=("undecodable",), sources=("app_events",))) == set()
    assert reasons(ALL) == {"undecodable", "unknown_event"}


def test_no_source_of_the_policy_may_take_the_name(letters: Letters) -> None:
    file = letters.project.config_file
    file.write_text(file.read_text().replace("app_events:", "dead_letters:", 1))

    with pytest.raises(TelemetryError, match=r"sources.dead_letters: .*choose another"):
        run.ingest(letters.project, "dead_letters", "test")


def test_a_claimed_slice_reads_the_same_bytes_again(letters: Letters) -> None:
    letters.ingest(*(odd + b"\n" for odd in ODD.values()))
    letters.ingest(line(record("never_heard_of", common(), None)))
    replay_id, _ = dead_letters.freeze(letters.project, ALL)
    assert replay_id is not None
    key = run.payload_key(letters.project)
    with closing(DeadLetterSource(connect(letters.project), key, grace_seconds=0)) as source:
        (cut,) = source.read_new({})
        again = source.read_again(Slice("dead_letters", replay_id, 0, 0, len(ODD) + 1), {})

    assert cut.data == again
    assert cut.data.splitlines()[0] == ODD["a word"]
    assert cut.slice.partition == str(uuid.UUID(replay_id))


# -- Dagster -----------------------------------------------------------------------------------


RUN_THE_JOB = """
import dagster as dg
from telemetry_pipeline.definitions import defs

replay = {"reasons": ["unknown_event"], "events": ["report_exported"]}
config = {"source": "dead_letters", "replay": replay}
defs.resolve_job_def("replay_dead_letters").execute_in_process(
    run_config={"ops": {"ingest": {"config": config}}}, instance=dg.DagsterInstance.ephemeral()
)
"""


def test_the_job_replays_and_the_marts_follow(letters: Letters) -> None:
    ids = letters.reject(4)
    letters.mend()
    (letters.project.root / "dbt_project").symlink_to(REPOSITORY / "dbt_project")

    # In an interpreter of its own: the definitions belong to the project they were loaded for.
    done = subprocess.run(
        [sys.executable, "-c", RUN_THE_JOB], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-3000:]
    letters.assert_exactly_once(ids)
    assert letters.ask("SELECT max(events) FROM marts.daily_active_users") == [(4,)]


def test_the_job_without_a_filter_finishes_what_was_cut_off(letters: Letters) -> None:
    from telemetry_pipeline.assets.raw import ingest_events

    ids = letters.reject(2)
    letters.mend()
    dead_letters.freeze(letters.project, UNKNOWN)
    letters.reject(1, "never_heard_of")

    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            [ingest_events],
            run_config={"ops": {"ingest": {"config": {"source": "dead_letters"}}}},
            instance=instance,
        )

    assert done.success
    letters.assert_exactly_once(ids)
    assert letters.states() == {("unknown_event", "replayed"): 2, ("unknown_event", "waiting"): 1}
