"""What a user does with dead letters: list, show, replay, purge.

A replay is frozen (its letters are listed), then landed by the loader like any source, so a crash
at any moment is finished by whoever lands that source next. A purge is listed, counted in the
ledger, and only then carried out; one that was cut off is finished by the next.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.config import load_config
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.ingest import ledger
from telemetry_pipeline.ingest.loader import ONE_BLOCK, IngestReport
from telemetry_pipeline.ingest.run import ingest, payload_key
from telemetry_pipeline.ingest.statements import statement as read_statement
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.dead_letters import DEAD_LETTERS, PayloadKey
from telemetry_pipeline.warehouse.client import connect

#: A letter this close to the end of its retention is not replayed: it could go while it is read.
LAST_MINUTES = 10
#: Opens nothing: for statements that are not to look inside.
_NO_KEY = PayloadKey("", "0" * 64)
_LETTER = re.compile(r"(?P<batch_id>\d{1,20})-(?P<position>\d{1,20})")


@dataclass(frozen=True)
class Choice:
    """Which dead letters: those that meet every filter; an empty one leaves none out.

    `events` are names of the catalogue as it is now, also where the letter's was unknown. Times
    are when a letter was written. `everything` says that no filter is meant.
    """

    reasons: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    everything: bool = False

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing was chosen, not even everything."""
        filters = (self.reasons, self.events, self.sources, self.batches, self.since, self.until)
        return not self.everything and not any(filters)

    def parameters(self) -> dict[str, Any]:
        return {
            "reasons": list(self.reasons),
            "events": list(self.events),
            "sources": list(self.sources),
            "batches": list(self.batches),
            "since_ms": _milliseconds(self.since),
            "until_ms": _milliseconds(self.until),
        }


@dataclass(frozen=True)
class Selection:
    """What a replay takes of a choice, by reason, and how many letters it leaves, and why.

    other_keys: by key id. unreadable: damaged, or the key was replaced under the same id. ending:
    their retention is (almost) over. replaying, replayed: held or judged by an earlier replay.
    """

    taken: Mapping[str, int]
    other_keys: Mapping[str, int] = field(default_factory=dict)
    unreadable: int = 0
    ending: int = 0
    replaying: int = 0
    replayed: int = 0

    @property
    def complaint(self) -> str | None:
        """What to do about letters that did not open; None when all did."""
        parts = [f"{letters:,} under key id {key}" for key, letters in self.other_keys.items()]
        if self.unreadable:
            parts.append(f"{self.unreadable:,} under the current id, but not with its key")
        if not parts:
            return None
        return (
            f"dead letters did not open and still wait: {', '.join(parts)}; put the key they were "
            "encrypted under into TELEMETRY_KEY_DEAD_LETTER (<key id>:<64 hex characters>) and "
            "replay them again"
        )


@dataclass(frozen=True)
class ReplayReport:
    """What came of one replay, from the ledger: the same for whoever asks, and whenever.

    items = judged + gone + lost + waiting. gone: ended, was purged or did not open before it was
    read. lost: ended between a crash and its recovery. received (log records) = accepted +
    duplicates + rejected again + dropped.
    """

    replay_id: str
    items: int
    judged: int
    gone: int
    lost: int
    waiting: int
    received: int
    accepted: int
    duplicates: int
    rejected: Mapping[str, int]
    dropped: Mapping[str, int]

    def __str__(self) -> str:
        rest = [
            f"{count:,} {what}"
            for what, count in (
                ("gone before they were read", self.gone),
                ("lost", self.lost),
                ("waiting", self.waiting),
            )
            if count
        ]
        return (
            f"replay {self.replay_id}: {self.items:,} letters; received {self.received:,}, "
            f"accepted {self.accepted:,}, duplicates {self.duplicates:,}, "
            f"rejected {sum(self.rejected.values()):,}, dropped {sum(self.dropped.values()):,}"
            + "".join(f"; {part}" for part in rest)
        )


@dataclass(frozen=True)
class Shown:
    """A letter with what is in it: personal data (pseudonymous edge ids, free text)."""

    letter: str
    described: Mapping[str, Any]
    payload: Any


# -- list ----------------------------------------------------------------------------------------


def list_letters(project: Project, choice: Choice) -> list[dict[str, Any]]:
    """How many letters there are of each reason, field, event, source and state."""
    with closing(connect(project)) as client:
        return _matching(client, "list", choice, _key_for(project, choice))


def list_each(project: Project, choice: Choice, most: int) -> list[dict[str, Any]]:
    """The newest `most` letters, each under the id that `show` takes."""
    with closing(connect(project)) as client:
        return _matching(client, "each", choice, _key_for(project, choice), {"most": most})


# -- show ----------------------------------------------------------------------------------------


def show_letter(project: Project, letter: str) -> Shown:
    """Open one letter; who did is recorded first.

    Raises TelemetryError when there is no such letter, or it is under another key.
    """
    matched = _LETTER.fullmatch(letter)
    if matched is None:
        raise TelemetryError(f"{letter}: not the id of a dead letter; `telemetry dlq list --each`")
    place = {"batch_id": int(matched["batch_id"]), "source_position": int(matched["position"])}
    key = payload_key(project)
    with closing(connect(project)) as client:
        client.command(
            "INSERT INTO ops.dead_letter_access SELECT now64(6, 'UTC'), {os_user:String}, "
            "batch_id, attempt, source_position FROM ops.dead_letter_states "
            "WHERE batch_id = {batch_id:UInt64} AND source_position = {source_position:UInt64}",
            place | {"os_user": os_user()},
        )
        found = list(
            client.query(
                read_statement("dead_letters_show.sql"), place | key.parameters()
            ).named_results()
        )
    if not found:
        raise TelemetryError(f"{letter}: there is no such dead letter (any more)")
    described = found[0]
    payload = described.pop("payload_hex")
    if payload is None:
        raise TelemetryError(
            f"{letter}: does not open with the key at hand (id {key.key_id}); it was encrypted "
            f"under id {described['key_id']}: put that key into TELEMETRY_KEY_DEAD_LETTER"
        )
    return Shown(letter, described, _readable(bytes.fromhex(payload)))


# -- replay --------------------------------------------------------------------------------------


def select(project: Project, choice: Choice) -> Selection:
    """What a replay of this choice would take now."""
    with closing(connect(project)) as client:
        return _select(client, project, choice)


def replay(
    project: Project, choice: Choice | None, run_id: str
) -> tuple[list[ReplayReport], str | None]:
    """Freeze a choice (None: nothing new) and land every unfinished replay.

    Gives the reports of the replays that were unfinished, the new one last, and what to do about
    letters that did not open.
    """
    begun = [report.replay_id for report in unfinished(project)]
    complaint = None
    if choice is not None:
        replay_id, selection = freeze(project, choice)
        begun += [replay_id] if replay_id else []
        complaint = selection.complaint
    if begun:
        for _ in land_replays(project, run_id):
            pass
    return [report_of(project, replay_id) for replay_id in begun], complaint


def freeze(project: Project, choice: Choice) -> tuple[str | None, Selection]:
    """Freeze a replay; gives its id, or None when there is nothing to replay.

    Raises TelemetryError for a choice that chooses nothing: all letters are chosen explicitly.
    """
    _refuse_unlimited(choice)
    replay_id = str(uuid.uuid4())
    with closing(connect(project)) as client:
        selection = _select(client, project, choice)
        wanted = choice.parameters() | payload_key(project).parameters() | _keep_minutes(project)
        _insert(client, "freeze", wanted | {"replay_id": replay_id}, replay_id)
        _insert(
            client,
            "begin",
            {
                "replay_id": replay_id,
                "filters": json.dumps(vars(choice), default=str),
                "requested_by": os_user(),
            },
            replay_id,
        )
        begun = client.query(
            "SELECT count() FROM ops.dead_letter_replays WHERE replay_id = {replay_id:UUID}",
            {"replay_id": replay_id},
        ).result_rows[0][0]
    return (replay_id if begun else None), selection


def land_replays(
    project: Project,
    run_id: str,
    *,
    on_slice: Callable[[IngestReport], None] | None = None,
) -> Iterator[IngestReport]:
    """Land what replays are unfinished, until none is; gives the report of every pass.

    A slice of a run that died can be taken over only after its deadline, and one that another run
    lands is waited for: up to two minutes without progress. Raises TelemetryError after that.
    """
    patience = ledger.DEADLINE_SECONDS + ledger.INSERT_SECONDS + ledger.CLOCK_MARGIN_SECONDS + 25
    left, progress_at = None, time.monotonic()
    while True:
        yield ingest(project, DEAD_LETTERS, run_id, on_slice=on_slice)
        now_left = sum(report.waiting for report in unfinished(project))
        if now_left == 0:
            return
        if now_left != left:
            left, progress_at = now_left, time.monotonic()
        if time.monotonic() > progress_at + patience:
            raise TelemetryError(
                f"{left:,} dead letters of replays still wait for a slice that another run holds; "
                "finish them with `telemetry dlq replay --resume`"
            )
        time.sleep(1)


def unfinished(project: Project) -> list[ReplayReport]:
    """The replays of which something still waits."""
    with closing(connect(project)) as client:
        ids = client.query(
            "SELECT DISTINCT toString(replay_id) FROM ops.dead_letter_replay_progress "
            "WHERE state IN ('open', 'pending')"
        ).result_rows
        return [_report(client, replay_id) for (replay_id,) in ids]


def report_of(project: Project, replay_id: str) -> ReplayReport:
    """What came of a replay so far."""
    with closing(connect(project)) as client:
        return _report(client, replay_id)


# -- purge ---------------------------------------------------------------------------------------


def purgeable(project: Project, choice: Choice) -> tuple[int, int]:
    """(letters that a purge would remove, letters it would leave to a replay that holds them)."""
    _refuse_unlimited(choice)
    found = list_letters(project, choice)
    held = sum(row["letters"] for row in found if row["state"] == "replaying")
    return sum(row["letters"] for row in found) - held, held


def purge(project: Project, choice: Choice) -> int:
    """Remove letters for good; gives how many. Counted in ops.ledger_adjustments before they go.

    Letters that an unfinished replay holds stay. Also finishes purges that were cut off.
    """
    _refuse_unlimited(choice)
    purge_id = str(uuid.uuid4())
    key = _key_for(project, choice)
    with closing(connect(project)) as client:
        finish_purges(client)
        wanted = choice.parameters() | key.parameters()
        _insert(
            client, "purge", wanted | {"purge_id": purge_id, "requested_by": os_user()}, purge_id
        )
        listed = client.query(
            "SELECT count() FROM ops.dead_letter_purge_items WHERE purge_id = {purge_id:UUID}",
            {"purge_id": purge_id},
        ).result_rows[0][0]
        finish_purges(client)
    return int(listed)


def finish_purges(client: Client) -> None:
    """Carry out what purges listed and did not remove: count it in the ledger, then remove it."""
    found = client.query(read_statement("dead_letters_unpurged.sql")).result_rows
    for (purge_id,) in found:
        _insert(client, "purge_counts", {"purge_id": purge_id}, f"purge {purge_id}")
        # Only ids of ours stand in the mutation, which the warehouse keeps in clear.
        client.command(
            "ALTER TABLE raw.dead_letters DELETE WHERE (batch_id, attempt, source_position) IN "
            "(SELECT batch_id, attempt, source_position FROM ops.dead_letter_purge_items "
            f"WHERE purge_id = toUUID('{uuid.UUID(purge_id)}'))",
            settings={"mutations_sync": 2},
        )


# ------------------------------------------------------------------------------------------------


def os_user() -> str:
    """Who runs this, by the operating system; not by an environment variable."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _select(client: Client, project: Project, choice: Choice) -> Selection:
    rows = _matching(client, "choice", choice, payload_key(project), _keep_minutes(project))

    def by(column: str, fate: str) -> dict[str, int]:
        return {row[column]: row["letters"] for row in rows if row["fate"] == fate}

    def total(fate: str) -> int:
        return sum(row["letters"] for row in rows if row["fate"] == fate)

    other_keys: dict[str, int] = {}
    for row in rows:
        if row["fate"] == "other_key":
            other_keys[row["key_id"]] = other_keys.get(row["key_id"], 0) + row["letters"]
    return Selection(
        taken=by("reason", "taken"),
        other_keys=other_keys,
        unreadable=total("unreadable"),
        ending=total("ending"),
        replaying=total("replaying"),
        replayed=total("replayed"),
    )


def _report(client: Client, replay_id: str) -> ReplayReport:
    (row,) = client.query(
        read_statement("dead_letters_report.sql"), {"replay_id": replay_id}
    ).named_results()
    received, accepted, duplicates, rejected, dropped = row.pop("results")
    return ReplayReport(
        replay_id,
        **row,
        received=received,
        accepted=accepted,
        duplicates=duplicates,
        rejected=rejected,
        dropped=dropped,
    )


def _refuse_unlimited(choice: Choice) -> None:
    if choice.is_unlimited:
        raise TelemetryError("no dead letters are chosen: give a filter, or --all for every one")


def _key_for(project: Project, choice: Choice) -> PayloadKey:
    """Names that were unknown stand in payloads only; nothing else needs the key."""
    return payload_key(project) if choice.events else _NO_KEY


def _keep_minutes(project: Project) -> dict[str, int]:
    days = load_config(project.config_file).retention.dead_letter_days
    return {"keep_minutes": days * 24 * 60 - LAST_MINUTES}


def _matching(
    client: Client,
    statement: str,
    choice: Choice,
    key: PayloadKey,
    more: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    parameters = choice.parameters() | key.parameters() | dict(more or {})
    return list(client.query(_filled(statement), parameters).named_results())


def _insert(client: Client, statement: str, parameters: dict[str, Any], token: str) -> None:
    client.command(
        _filled(statement), parameters, settings=ONE_BLOCK | {"insert_deduplication_token": token}
    )


def _filled(statement: str) -> str:
    text = read_statement(f"dead_letters_{statement}.sql")
    return text.replace("{{matching}}", read_statement("dead_letters_matching.sql"))


def _milliseconds(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment else 0


def _readable(payload: bytes) -> Any:
    """JSON as it is; what is none as text, with what is no UTF-8 written out."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return payload.decode(errors="backslashreplace")
