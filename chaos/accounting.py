"""What became of each event: the emitter's book against the warehouse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from clickhouse_connect.driver.client import Client

from chaos import limits
from chaos.book import Book
from chaos.events import Fate
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.paths import Project

_EVENT_ID = re.compile(
    r'"event(?:\.id|Id)"[^}]{0,60}?"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"'
)


@dataclass(frozen=True)
class SourceTotals:
    """Sums over a source's results. Unit: log records."""

    received: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    slices: int = 0
    later_attempts: int = 0


@dataclass(frozen=True)
class Stored:
    """What the warehouse says. `broken`: records of batches whose own figures disagree, by what
    disagrees; `in_view` and `in_letters` count event ids."""

    in_view: Counter[str]
    in_letters: Counter[str]
    letters_without_id: int
    totals: Mapping[str, SourceTotals]
    removed_duplicates: int
    broken: Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """All three are zero when every event is where it must be, once, and every record counted."""

    lost: int
    duplicated: int
    unaccounted: int
    #: What adds up to `unaccounted`, by name; only what is not zero.
    problems: Mapping[str, int]
    #: Some event ids of each problem, for whoever looks into it.
    examples: Mapping[str, list[str]]

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.duplicated or self.unaccounted)


def read_stored(client: Client, project: Project) -> Stored:
    """Everything the comparison needs, read in a quiet warehouse."""
    key = read_key("dead_letter", project.keys_dir)
    letters = _rows(client, "letters.sql", secret_key_dead_letter=key.derive("payload"))
    ids = [_EVENT_ID.search(row["payload"]) for row in letters]
    return Stored(
        in_view=Counter({row["id"]: row["copies"] for row in _rows(client, "view.sql")}),
        in_letters=Counter(found[1] for found in ids if found),
        letters_without_id=sum(1 for found in ids if not found),
        totals={row.pop("source"): SourceTotals(**row) for row in _rows(client, "totals.sql")},
        removed_duplicates=int(_rows(client, "removed.sql")[0]["records"]),
        broken={row["problem"]: int(row["records"]) for row in _rows(client, "broken.sql")},
    )


def judge(book: Book, deliveries: Mapping[str, Counter[str]], stored: Stored) -> Verdict:
    """Compare. `deliveries` are those of each sink, by event id. Pure."""
    return _Judge(book, deliveries, stored).verdict()


class _Judge:
    def __init__(self, book: Book, deliveries: Mapping[str, Counter[str]], stored: Stored) -> None:
        self._book = book
        self._deliveries = deliveries
        self._stored = stored
        self._delivered: Counter[str] = Counter()
        for counted in deliveries.values():
            self._delivered.update(counted)
        self._problems: Counter[str] = Counter(stored.broken)
        self._examples: dict[str, list[str]] = {}

    def verdict(self) -> Verdict:
        view, letters = self._stored.in_view, self._stored.in_letters
        events = self._book.events
        lost = self._note(
            "lost",
            (
                event_id
                for event_id, event in events.items()
                if event_id not in view
                and (
                    event.fate is Fate.ACCEPTED
                    or (event.fate is Fate.EITHER and event_id not in letters)
                )
            ),
        )
        duplicated = sum(copies - 1 for copies in view.values() if copies > 1)
        self._note("duplicated", (event_id for event_id, copies in view.items() if copies > 1))
        self._check_ids()
        self._check_letters()
        self._check_sources()
        self._check_totals()
        problems = {name: records for name, records in self._problems.items() if records}
        return Verdict(lost, duplicated, sum(problems.values()), problems, self._examples)

    def _check_ids(self) -> None:
        view = self._stored.in_view
        events = self._book.events
        strangers = (event_id for event_id in view if event_id not in events)
        self._problem("events that nobody emitted", strangers)
        never = (Fate.UNKNOWN_EVENT, Fate.INVALID_ATTRIBUTE, Fate.DENIED)
        self._problem(
            "events accepted that must not be",
            (i for i in view if i in events and events[i].fate in never),
        )
        missing = (i for i in events if i not in self._delivered)
        self._problem("events the sink no longer holds", missing)

    def _check_letters(self) -> None:
        """Every rejected delivery is one dead letter, and nothing else is."""
        letters, view = self._stored.in_letters, self._stored.in_view
        self._problems["dead letters without an event id"] += self._stored.letters_without_id
        wrong: Counter[str] = Counter()
        for event_id, event in self._book.events.items():
            times, found = self._delivered[event_id], letters[event_id]
            if event.fate in (Fate.UNKNOWN_EVENT, Fate.INVALID_ATTRIBUTE):
                wrong[event_id] = abs(found - times)
            elif event.fate is not Fate.EITHER:
                wrong[event_id] = found
            elif event_id in view:
                wrong[event_id] = max(0, found - (times - 1))
            elif event_id in letters:
                # Others may be duplicates of a batch that was replayed under another catalogue.
                wrong[event_id] = max(0, found - times)
        strangers = (i for i in letters if i not in self._book.events)
        self._problem("dead letters that nobody emitted", strangers)
        self._problem("dead letters too few or too many", wrong.elements())

    def _check_sources(self) -> None:
        """Each source received what was delivered to its sink, record by record."""
        for source, counted in self._deliveries.items():
            totals = self._stored.totals.get(source, SourceTotals())
            fates = self._book.by_fate(counted)
            self._differ(f"{source}: received", totals.received, sum(counted.values()))
            denied = fates[Fate.DENIED]
            self._differ(f"{source}: dropped", sum(totals.dropped.values()), denied)
            self._differ(
                f"{source}: dropped for consent", totals.dropped.get("consent_denied", 0), denied
            )
            for fate in (Fate.UNKNOWN_EVENT, Fate.INVALID_ATTRIBUTE):
                found = totals.rejected.get(fate.value, 0)
                least, most = fates[fate], fates[fate] + fates[Fate.EITHER]
                self._differ(
                    f"{source}: rejected as {fate.value}", found, max(least, min(found, most))
                )

    def _check_totals(self) -> None:
        """Accepted and duplicates of the ledger, against what ids say must have been."""
        view, letters = self._stored.in_view, self._stored.in_letters
        totals = self._stored.totals.values()
        removed = self._stored.removed_duplicates
        self._differ(
            "accepted, less removed duplicates, against the events in the view",
            sum(total.accepted for total in totals) - removed,
            sum(view.values()),
        )
        self._differ(
            "duplicates, with removed ones, against repeated deliveries",
            sum(total.duplicates for total in totals) + removed,
            sum(
                self._delivered[i] - letters[i] - (i in view)
                for i, event in self._book.events.items()
                if i in view or (event.fate is Fate.EITHER and i in letters)
            ),
        )

    def _problem(self, name: str, event_ids: Iterable[str]) -> None:
        self._problems[name] += self._note(name, event_ids)

    def _note(self, name: str, event_ids: Iterable[str]) -> int:
        found = list(event_ids)
        if found:
            self._examples[name] = found[:5]
        return len(found)

    def _differ(self, name: str, found: int, wanted: int) -> None:
        self._problems[f"{name}: {found:,} instead of {wanted:,}"] += abs(found - wanted)


@dataclass(frozen=True)
class Struck:
    """When something was struck, and the runs that felt it."""

    moment: float
    runs: tuple[str, ...]


def count_mid_slice(client: Client, strikes: Iterable[Struck]) -> int:
    """Strikes that came while a run they hit owned a claim without a result.

    A claim counts for its run until its result, until another attempt took it over, or until its
    deadline and the longest insert are past: later its owner could do nothing with it.
    """
    claims: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(client, "claims.sql", insert_seconds=limits.INSERT_SECONDS):
        claims.setdefault(row["run_id"], []).append((row["began"], row["ended"]))

    def is_mid_slice(strike: Struck) -> bool:
        return any(
            began <= strike.moment < ended
            for run_id in strike.runs
            for began, ended in claims.get(run_id, [])
        )

    return sum(1 for strike in strikes if is_mid_slice(strike))


def is_torn(client: Client, source: str) -> bool:
    """Whether a batch of this source lies torn."""
    return bool(_rows(client, "torn.sql", source=source)[0]["batches"])


def _rows(client: Client, name: str, **parameters: Any) -> list[dict[str, Any]]:
    statement = (resources.files("chaos") / "statements" / name).read_text(encoding="utf-8")
    return [dict(row) for row in client.query(statement, parameters).named_results()]
