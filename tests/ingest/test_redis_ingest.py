"""From a real Redis to the warehouse: each event once, whatever dies, and the group shows it."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from clickhouse_connect.driver.client import Client
from services.streams import Redis, running_redis

from telemetry_pipeline.identity.edge import IdKind, edge_id
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.ingest.dead_letters import Choice, replay, show_letter
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project

pytestmark = pytest.mark.needs("redis-server")

SOURCE = "platform_events"
ACME, OTHER, NOBODY = (f"product-telemetry:{name}:events" for name in ("acme", "b:c", "anonymous"))
GROUP = "telemetry-pipeline"
POLICY = f"""\
sources:
  {SOURCE}:
    kind: redis_stream
    url: env:PLATFORM_REDIS_URL
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("redis"), durable=True) as server:
        yield server


@pytest.fixture
def streams(
    server: Redis, project: Project, client: Client, monkeypatch: pytest.MonkeyPatch
) -> Iterator[redis.Redis]:
    """An empty server that the project reads and nothing else."""
    project.config_file.write_text(POLICY)
    monkeypatch.setenv("PLATFORM_REDIS_URL", server.url)
    with closing(redis.Redis(port=server.port)) as streams:
        streams.flushall()
        yield streams


def event(name: str = "feature_viewed", **payload: Any) -> dict[str, Any]:
    return {
        "eventId": str(uuid.uuid4()),
        "name": name,
        "occurredAt": (datetime.now(UTC) - timedelta(minutes=5)).isoformat(),
        "routePattern": "/projects/:projectId/features",
        "payload": payload or {"feature": "feature_list", "surface": "page"},
    }


def batch(*events: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A ProductTelemetryBatch; None leaves a field out."""
    fields = {
        "schemaVersion": "2026-05-telemetry-v1",
        "source": "web",
        "sentAt": datetime.now(UTC).isoformat(),
        "sessionId": "raw-session-1",
        "anonymousUserId": "raw-user-1",
        "consent": {"analytics": "granted"},
        "events": list(events),
    }
    return {key: value for key, value in (fields | more).items() if value is not None}


def add(streams: redis.Redis, stream: str, *events: dict[str, Any], **more: Any) -> None:
    streams.xadd(stream, {"batch": json.dumps(batch(*events, **more))})


def rows(client: Client) -> list[dict[str, Any]]:
    statement = "SELECT * FROM raw.product_telemetry_events ORDER BY source_partition, event_id"
    return list(client.query(statement).named_results())


def stored_ids(client: Client) -> list[str]:
    return sorted(str(row["event_id"]) for row in rows(client))


def group_of(streams: redis.Redis, stream: str = ACME) -> tuple[int, int]:
    (group,) = streams.xinfo_groups(stream)
    return group["lag"], group["pending"]


def losses(client: Client) -> list[str]:
    return [str(row[0]) for row in client.query("SELECT reason FROM ops.source_losses").result_rows]


def test_batches_become_events_with_pseudonyms_and_no_raw_id(
    project: Project, client: Client, streams: redis.Redis
) -> None:
    add(streams, ACME, event(), event(feature="reports", surface="modal"))
    add(streams, OTHER, event())
    add(streams, NOBODY, event(), anonymousUserId=None, sessionId=None)

    report = ingest(project, SOURCE, "test")

    assert (report.received, report.accepted, report.waiting) == (4, 4, 0)
    edge = read_key("edge", project.keys_dir)
    pseudonym = read_key("pseudonym", project.keys_dir)

    def of(kind: IdKind, raw: str) -> int:
        text = edge_id(edge.key_id, edge.secret, kind, raw).encode()
        digest = hmac.digest(pseudonym.derive(kind).encode(), text, hashlib.sha256)
        return int.from_bytes(digest[:8], "little")

    stored = rows(client)
    assert sorted(row["org_id_hash"] or 0 for row in stored) == sorted(
        [of("organisation", "acme")] * 2 + [of("organisation", "b:c"), 0]
    )
    assert {row["anonymous_user_id"] for row in stored} == {of("user", "raw-user-1"), None}
    assert {row["session_id"] for row in stored} == {of("session", "raw-session-1"), None}
    assert {row["source"] for row in stored} == {"web"}
    assert {row["route_pattern"] for row in stored} == {"/projects/:projectId/features"}
    assert {json.loads(row["payload_json"])["feature"] for row in stored} == {
        "feature_list",
        "reports",
    }
    assert not any(name in str(stored) for name in ("acme", "b:c", "raw-"))
    assert [group_of(streams, name) for name in (ACME, OTHER, NOBODY)] == [(0, 0)] * 3


def test_hostile_entries_are_dead_letters_and_harm_no_neighbour(
    project: Project, client: Client, streams: redis.Redis
) -> None:
    good = [event(), event()]
    add(streams, ACME, good[0])
    hostile = [
        b'1}, "organisation": "x"',
        b'{}}\n{"organisation": "x", "batch": {}',
        b'{"events": [\xff]}',
        b"",
        b"[]",
        b'{"events": ' + b"[" * 3000 + b"]" * 3000 + b"}",
    ]
    for text in hostile:
        streams.xadd(ACME, {"batch": text})
    streams.xadd(ACME, {"body": "{}"})
    add(streams, ACME, good[1])

    report = ingest(project, SOURCE, "test")

    assert report.rejected == {"undecodable": len(hostile) + 1}
    assert (report.received, report.accepted) == (len(hostile) + 3, 2)
    assert stored_ids(client) == sorted(item["eventId"] for item in good)
    assert len({row["org_id_hash"] for row in rows(client)}) == 1
    ((_, notice),) = streams.xrange("product-telemetry:dlq")
    assert (notice[b"reason"], notice[b"records"]) == (b"undecodable", b"7")
    assert group_of(streams) == (0, 0)


def test_what_is_rejected_or_dropped_is_counted_and_a_notice_names_the_reason(
    project: Project, client: Client, streams: redis.Redis
) -> None:
    add(
        streams, ACME, event(), event("never_heard_of"), event(feature="Not A Pattern", surface="x")
    )
    add(streams, ACME, event(), consent={"analytics": "denied"})

    report = ingest(project, SOURCE, "test")

    assert report.accepted == 1
    assert report.rejected == {"unknown_event": 1, "invalid_attribute": 1}
    assert report.dropped == {"consent_denied": 1}
    notices = {fields[b"reason"] for _, fields in streams.xrange("product-telemetry:dlq")}
    assert notices == {b"unknown_event", b"invalid_attribute"}


def test_two_runs_at_once_land_each_event_once(
    project: Project, client: Client, streams: redis.Redis
) -> None:
    sent = []
    for number in range(40):
        events = [event(), event()]
        sent += [item["eventId"] for item in events]
        add(streams, f"product-telemetry:org{number % 4}:events", *events)
    reports, errors = [], []

    def run(name: str) -> None:
        try:
            reports.append(ingest(project, SOURCE, name))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    assert sum(report.accepted for report in reports) == 80
    assert stored_ids(client) == sorted(sent)
    ingest(project, SOURCE, "after")
    assert stored_ids(client) == sorted(sent)


def test_a_stream_restored_from_an_older_state_adds_no_event_twice(
    project: Project, client: Client, streams: redis.Redis
) -> None:
    first, second, third = event(), event(), event()
    add(streams, ACME, first)
    backup = streams.dump(ACME)
    add(streams, ACME, second)
    ingest(project, SOURCE, "test")
    streams.restore(ACME, 0, backup, replace=True)
    add(streams, ACME, third)
    # The clock of ids went on, so the stream looks ahead of the ledger; the entry is missed.
    report = ingest(project, SOURCE, "test")

    assert (report.accepted, report.duplicates) == (1, 1)
    assert stored_ids(client) == sorted(item["eventId"] for item in (first, second, third))
    assert losses(client) == ["stream_recreated"]


def test_what_was_trimmed_unread_is_in_the_ledger(
    project: Project, client: Client, streams: redis.Redis
) -> None:
    add(streams, ACME, event())
    ingest(project, SOURCE, "test")
    for _ in range(4):
        add(streams, ACME, event())
    streams.xtrim(ACME, maxlen=1, approximate=False)

    report = ingest(project, SOURCE, "test")

    assert (report.accepted, report.lost_slices, report.waiting) == (1, 1, 0)
    assert losses(client) == ["trimmed_in_stream"]
    assert ingest(project, SOURCE, "test").lost_slices == 0


class Worker:
    """`telemetry ingest` as a process of its own, four entries a slice."""

    def __init__(self, *, dies: bool = False) -> None:
        script = Path(__file__).with_name("killed_redis_ingest.py")
        arguments = ["4", "5", "4", str(int(dies))]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def end(self, *excuses: str) -> int:
        """The code it ended with: 0, -9 where it was killed, or another for one of `excuses`."""
        said, _ = self.process.communicate(timeout=60)
        code = self.process.returncode
        assert code in (0, -9) or any(excuse in said.decode() for excuse in excuses), said.decode()
        return code


def test_a_worker_killed_between_result_and_acknowledgement_leaves_nothing_to_repeat(
    project: Project, client: Client, streams: redis.Redis
) -> None:
    sent = [event() for _ in range(12)]
    for item in sent:
        add(streams, ACME, item)
    streams.xgroup_create(ACME, GROUP, id="0")
    streams.xreadgroup(GROUP, "dead", {ACME: ">"}, count=3)
    assert Worker(dies=True).end() == -9
    assert group_of(streams) == (9, 3), "the group was not told"
    assert len(stored_ids(client)) == 4

    assert Worker().end() == 0

    assert stored_ids(client) == sorted(item["eventId"] for item in sent)
    (total,) = client.query(
        "SELECT sum(accepted), sum(duplicates) FROM ops.slice_results"
    ).result_rows
    assert total == (12, 0)
    assert group_of(streams) == (0, 0)


def test_workers_killed_anywhere_lose_and_double_nothing(
    project: Project, client: Client, streams: redis.Redis, server: Redis
) -> None:
    """SIGKILL at random moments while a platform goes on writing; of the Redis server, too."""
    chance = random.Random(7)
    sent: list[str] = []

    def write() -> None:
        for _ in range(12):
            events = [event() for _ in range(3)]
            sent.extend(item["eventId"] for item in events)
            add(streams, chance.choice([ACME, OTHER, NOBODY]), *events)

    kills = 0
    for number in range(6):
        write()
        worker = Worker()
        time.sleep(chance.uniform(1.2, 3.0))
        if number % 3 == 2:
            server.kill()
            worker.end("Redis at 127.0.0.1")
            server.start()
            continue
        worker.process.kill()
        kills += worker.end() == -9
    write()
    ends = time.monotonic() + 90
    while (left := client.command("SELECT countIf(state = 'open') FROM ops.ingest_ledger")) or (
        len(stored_ids(client)) < len(sent)
    ):
        assert time.monotonic() < ends, f"{left} slices stay open"
        Worker().end("slice deadline passed")  # on a busy machine; it is taken over again
        time.sleep(0.5)

    assert kills >= 2
    assert stored_ids(client) == sorted(sent)
    assert losses(client) == []
    assert [group_of(streams, name) for name in (ACME, OTHER, NOBODY)] == [(0, 0)] * 3


def test_a_letter_holds_edge_ids_and_lands_once_after_a_catalogue_fix(
    project: Project, client: Client, streams: redis.Redis
) -> None:
    """Ids are hashed before anything of ours is written, letters included: what is judged again
    later gets the pseudonyms that it would have had."""
    add(streams, ACME, event("feature_seen"), event())
    ingest(project, SOURCE, "test")
    (letter,) = client.query("SELECT * FROM raw.dead_letters").named_results()
    shown = show_letter(project, f"{letter['batch_id']}-{letter['source_position']}")
    assert not any(raw in str(shown) for raw in ("raw-", "acme"))

    catalogue = project.catalog_dir / "events" / "product_usage.yaml"
    text = catalogue.read_text()
    start = text.index("  - name: feature_viewed")
    known = text[start : text.index("  - name: filter_changed")]
    catalogue.write_text(text + "\n" + known.replace("feature_viewed", "feature_seen"))
    ((report,), _) = replay(project, Choice(reasons=("unknown_event",)), "test")

    assert (report.received, report.accepted) == (1, 1)
    first, second = rows(client)
    for column in ("org_id_hash", "anonymous_user_id", "session_id", "payload_json", "source"):
        assert first[column] == second[column], column
