"""Hostile input: each attack alone and between good records, in each encoding that can
carry it. docs/hostile_input.md documents the outcomes; a test holds it against this suite."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from batches import Batch, as_protobuf, framed
from clickhouse_connect.driver.client import Client
from fresh import REPOSITORY, make_project
from log_records import (
    DAY_MS,
    MemorySource,
    Outcome,
    common,
    edge,
    line,
    make_loader,
    outcomes,
    record,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto_json.logs.v1.logs import LogsData
from stored_bytes import stored

from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.ingest.loader import Loader, new_session_id
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.base import Encoding
from telemetry_pipeline.sources.compressed_files import Limits
from telemetry_pipeline.sources.otel_file import OtelFileSource
from telemetry_pipeline.warehouse.client import Address, connect
from telemetry_pipeline.warehouse.embedded import read_endpoint
from telemetry_pipeline.warehouse.migrate import migrate

DOCUMENT = REPOSITORY / "docs" / "hostile_input.md"
NOW_MS = int(time.time() * 1000)
HOUR_AGO = NOW_MS - 3_600_000
#: Stands wherever an attack puts something personal; must be in no byte of the warehouse.
CANARY = "canary-6f1d@example.com"
CONTROL = "/canary-control/hostile"  # stands in a column that is stored as it is
JSON, PROTO, BATCH = "otlp_json", "otlp_proto", "product_telemetry_batch"
ENCODINGS: tuple[Encoding, ...] = (JSON, PROTO, BATCH)
FEATURE = {"ui.feature": "feature_list", "ui.surface": "page"}


@dataclass(frozen=True)
class Attack:
    """`came_of`: how many records ended as what; `check` looks at what landed."""

    title: str
    encoding: Encoding
    data: bytes
    came_of: Mapping[str, int]
    unknown: int = 0
    payload: Mapping[str, Any] | None = None
    check: Callable[[Outcome], None] | None = field(default=None, compare=False)
    #: Ends otherwise in a slice with a message that cannot be parsed: a known disagreement.
    depends_on_neighbours: bool = False

    @property
    def id(self) -> str:
        return f"{self.title} [{self.encoding}]"


# -- writing attacks down ----------------------------------------------------------------------


def event(name: str | None = "page_viewed", time_ms: int = HOUR_AGO, **more: Any) -> dict[str, Any]:
    """A log record; `with_` changes attributes (None leaves one out), `pairs` come behind them."""
    changed = {key.replace(".", "__"): value for key, value in more.pop("with_", {}).items()}
    return record(name, [*common(**changed).items(), *more.pop("pairs", [])], time_ms, **more)


def request(*records: dict[str, Any]) -> bytes:
    """Log records of OTLP/JSON as one protobuf message behind its length."""
    return as_protobuf(Batch(LogsData.from_json(line(*records))))


def both(title: str, *records: dict[str, Any], came_of: str, **more: Any) -> list[Attack]:
    """One attack with the same outcome for OTLP/JSON and protobuf."""
    counts = {came_of: len(records)}
    return [
        Attack(title, JSON, line(*records), counts, **more),
        Attack(title, PROTO, renewed(request(*records)), counts, **more),
    ]


def entry(
    name: str = "page_viewed", payload: Mapping[str, Any] | None = None, **more: Any
) -> bytes:
    """A line of a source of ProductTelemetryBatch entries with one event; None leaves out."""
    one = {
        "eventId": str(uuid.uuid4()),
        "name": name,
        "occurredAt": _iso(more.pop("time_ms", HOUR_AGO)),
        "payload": dict(payload or {}),
    }
    for key in ("eventId", "routePattern"):
        if key in more:
            one[key] = more.pop(key)
    batch = {
        "schemaVersion": "2026-05-telemetry-v1",
        "source": "web",
        "sentAt": _iso(NOW_MS),
        "sessionId": "s-1",
        "anonymousUserId": "u-1",
        "consent": {"analytics": "granted"},
        "events": [one],
    }
    organisation = more.pop("organisation", "acme")
    batch |= more
    batch = {key: value for key, value in batch.items() if value is not None}
    document = {"organisation": organisation, "batch": batch}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def in_batch(title: str, data: bytes, came_of: str, **more: Any) -> Attack:
    return Attack(title, BATCH, data, {came_of: 1}, **more)


def in_json(title: str, data: bytes, came_of: str, **more: Any) -> Attack:
    return Attack(title, JSON, data, {came_of: 1}, **more)


def swapped(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1, "the place to attack is there once"
    return data.replace(old, new)


IDS = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|e1_[0-9a-f]{64}")


def renewed(data: bytes) -> bytes:
    """The same with other event ids and people, or it would be its own second delivery."""
    new: dict[bytes, bytes] = {}
    for old in IDS.findall(data):
        fresh = edge("any", uuid.uuid4()) if old.startswith(b"e1_") else str(uuid.uuid4())
        new.setdefault(old, fresh.encode())
    return IDS.sub(lambda found: new[found[0]], data)


def good(encoding: Encoding) -> bytes:
    if encoding == BATCH:
        return entry(routePattern=CONTROL)
    good_event = event(with_={"url.template": CONTROL})
    return line(good_event) if encoding == JSON else request(good_event)


# -- the attacks -------------------------------------------------------------------------------


def at(occurred_ms: int | None, claimed_ms: int | None) -> Callable[[Outcome], None]:
    """The time an event counts at (None: when the slice was read), and the one it claimed."""

    def check(outcome: Outcome) -> None:
        row = outcome.event
        expected = row["ingested_at"] if occurred_ms is None else _naive(occurred_ms)
        assert row["occurred_at"] == expected
        assert row["claimed_occurred_at"] == (claimed_ms and _naive(claimed_ms))

    return check


def _naive(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None)


def blames(key: str) -> Callable[[Outcome], None]:
    def check(outcome: Outcome) -> None:
        assert {letter["field"] for letter in outcome.letters} == {key}

    return check


def nameless(outcome: Outcome) -> None:
    """A name that is free text stays in the encrypted payload."""
    assert {letter["event_name"] for letter in outcome.letters} == {""}


def nobody(outcome: Outcome) -> None:
    assert outcome.event["anonymous_user_id"] is None


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"stringValue": CANARY}
    for _ in range(levels):
        value = {"arrayValue": {"values": [value]}}
    return value


LONG = CANARY + "z" * 2_000_000
SURROGATE = "\\ud83d"
SCHEDULED = {"environment.kind": "production", "scheduled_change.delay_hours": 12.5}
FILTER = {"ui.view": "audit_log", "ui.filter.key": "environment"}
NAUGHTY = "'; DROP TABLE raw.landing -- ` \" \\ {{pairs}} {batch_id:UInt64} \\N \\'"
NAUGHTY_KEYS = ["'; DROP TABLE raw.landing --", "`a`", 'a"b', "a'b", "a\\b", "{x:String}", "{{a}}"]


def _number(value: Any) -> dict[str, Any]:
    return event("filter_changed", with_=FILTER | {"ui.filter.value_count": value})


def _delay(value: Any) -> dict[str, Any]:
    return event(
        "scheduled_change.created", with_=SCHEDULED | {"scheduled_change.delay_hours": value}
    )


def _lines() -> Iterator[Attack | list[Attack]]:
    long_value = event(with_={"x.y": LONG})
    yield both("a line of 2 MB", long_value, came_of="accepted", unknown=1)
    yield in_batch("a line of 2 MB", entry(payload={"xY": LONG}), "accepted", unknown=1)
    yield both(
        "a dead letter of 2 MB",
        event("never_heard_of", with_={"x.y": LONG}),
        came_of="unknown_event",
    )
    marked = line(event(with_={"x.y": CANARY + "?"}))
    yield in_json("invalid UTF-8", swapped(marked, b"?", b"\xff"), "undecodable")
    yield Attack(
        "invalid UTF-8 in an attribute that is dropped",
        PROTO,
        swapped(request(event(with_={"x.y": CANARY + "?"})), b"?", b"\xff"),
        {"accepted": 1},
        unknown=1,
        depends_on_neighbours=True,
    )
    yield Attack(
        "invalid UTF-8 in a value that is stored",
        PROTO,
        swapped(request(event("probe", with_={"probe.free": "a?b"})), b"?", b"\xff"),
        {"invalid_attribute": 1},
        depends_on_neighbours=True,
    )
    yield in_batch(
        "invalid UTF-8", swapped(entry(payload={"xY": CANARY + "?"}), b"?", b"\xff"), "undecodable"
    )
    yield in_json("a lone surrogate", swapped(marked, b"?", SURROGATE.encode()), "undecodable")
    yield in_batch(
        "a lone surrogate",
        swapped(entry(payload={"xY": CANARY + "?"}), b"?", SURROGATE.encode()),
        "undecodable",
    )
    whole = line(event(with_={"x.y": CANARY}))
    yield in_json("a truncated line", whole[:-20] + b"\n", "undecodable")
    yield in_batch("a truncated line", entry(sessionId=CANARY)[:-20] + b"\n", "undecodable")
    message = request(event(with_={"x.y": CANARY}))[2:]
    yield Attack("a truncated message", PROTO, framed(message[:-20]), {"undecodable": 1})
    yield Attack(
        "a truncated line that goes on with the next request",
        JSON,
        whole[: len(whole) // 2] + line(event()),
        {"undecodable": 1, "accepted": 1},
    )
    yield Attack(
        "protobuf with a garbage tail",
        PROTO,
        framed(message + b"\xff\xff\xff" + CANARY.encode()),
        {"undecodable": 1},
    )
    yield Attack("protobuf that is text", PROTO, framed(CANARY.encode()), {"undecodable": 1})
    yield in_json("a JSON array instead of an object", b"[" + whole.strip() + b"]\n", "undecodable")
    yield in_batch(
        "a JSON array instead of an object",
        b"[" + entry(sessionId=CANARY).strip() + b"]\n",
        "undecodable",
    )
    yield in_json(
        "a traces payload",
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"%s"}]}]}]}\n' % CANARY.encode(),
        "not_logs",
    )
    yield Attack(
        "a traces payload in protobuf",
        PROTO,
        framed(_traces()),
        {"not_an_event": 1},
        depends_on_neighbours=True,
    )
    yield in_json("an OTLP request in a stream of batches", entry(sessionId=CANARY), "not_logs")
    yield in_batch("a stream's batch that is OTLP", whole, "not_logs")


def _traces() -> bytes:
    sent = ExportTraceServiceRequest()
    span = sent.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = bytes(range(16)), bytes(range(8)), CANARY
    span.start_time_unix_nano = span.end_time_unix_nano = HOUR_AGO * 1_000_000
    return sent.SerializeToString()


def _numbers() -> Iterator[Attack | list[Attack]]:
    marked = line(_delay(0.25))
    for bare in ("NaN", "Infinity", "-Infinity"):
        yield in_json(f"{bare}, bare", swapped(marked, b"0.25", bare.encode()), "undecodable")
        quoted = _delay({"doubleValue": bare})
        blame = blames("scheduled_change.delay_hours")
        yield both(f"{bare}, quoted", quoted, came_of="invalid_attribute", check=blame)
        scheduled = entry(
            "scheduled_change.created", {"environmentKind": "production", "delayHours": 0.25}
        )
        yield in_batch(f"{bare}, bare", swapped(scheduled, b"0.25", bare.encode()), "undecodable")
        yield in_batch(
            f"{bare}, quoted",
            swapped(scheduled, b"0.25", f'"{bare}"'.encode()),
            "invalid_attribute",
            check=blame,
        )
    yield in_json("a double of 1e400", swapped(marked, b"0.25", b"1e400"), "undecodable")
    blame = blames("ui.filter.value_count")
    for title, number in (("2^63", 2**63), ("2^64", 2**64), ("-2^63 - 1", -(2**63) - 1)):
        for how, value in (("quoted", str(number)), ("bare", number)):
            yield in_json(
                f"an int of {title}, {how}",
                line(_number({"intValue": value})),
                "invalid_attribute",
                check=blame,
            )
        filtered = {"view": "audit_log", "filterKey": "environment", "valueCount": number}
        yield in_batch(
            f"an int of {title}, bare",
            entry("filter_changed", filtered),
            "invalid_attribute",
            check=blame,
        )
    odd = ("+5", "007", " 5", "5 ", "0x5", "5.0", "1e2", "", "-", "५")
    yield Attack(
        "ints that are not written as OTLP/JSON writes them",
        JSON,
        line(*(_number({"intValue": text}) for text in odd)),
        {"invalid_attribute": len(odd)},
        check=blame,
    )


def _attributes() -> Iterator[Attack | list[Attack]]:
    two_names = swapped(
        line(event("feature_viewed", with_=FEATURE)),
        b'"eventName":"feature_viewed"',
        b'"eventName":"feature_viewed","eventName":"page_viewed"',
    )
    yield in_json("a JSON key twice: eventName", two_names, "accepted")
    two_values = swapped(
        line(event()),
        b'{"stringValue":"granted"}',
        b'{"stringValue":"denied","stringValue":"granted"}',
    )
    yield in_json("a JSON key twice: the value of consent", two_values, "consent_denied")
    yield both(
        "an OTLP attribute twice: consent, denied first",
        event(
            with_={"consent.analytics": None, "x.y": CANARY},
            pairs=[("consent.analytics", "denied"), ("consent.analytics", "granted")],
        ),
        came_of="consent_denied",
    )
    yield both(
        "an OTLP attribute twice: an id, the second raw",
        event(pairs=[("enduser.pseudo.id", CANARY)]),
        came_of="accepted",
    )
    yield both(
        "an OTLP attribute twice: an id, the first raw",
        event(
            with_={"enduser.pseudo.id": None},
            pairs=[("enduser.pseudo.id", CANARY), ("enduser.pseudo.id", edge("user", 1))],
        ),
        came_of="raw_identifier",
        check=blames("enduser.pseudo.id"),
    )
    yield both(
        "an unknown AnyValue 60 deep", event(with_={"x.y": deep(60)}), came_of="accepted", unknown=1
    )
    yield both(
        "an AnyValue 60 deep where text is due",
        event("feature_viewed", with_=FEATURE | {"ui.feature": deep(60)}),
        came_of="invalid_attribute",
        check=blames("ui.feature"),
    )
    yield both(
        "an empty AnyValue where one is required",
        event("feature_viewed", with_=FEATURE | {"ui.feature": {}}),
        came_of="missing_attribute",
        check=blames("ui.feature"),
    )
    yield both(
        "an empty AnyValue as a name", event(None, with_={"event.name": {}}), came_of="not_an_event"
    )
    yield both(
        "5,000 attributes",
        event(with_={f"x.y{number}": CANARY for number in range(5000)}),
        came_of="accepted",
        unknown=5000,
    )
    yield in_batch(
        "5,000 attributes",
        entry(payload={f"x{number}": CANARY for number in range(5000)}),
        "accepted",
        unknown=5000,
    )
    yield both(
        "SQL, backticks and quotes in attribute names",
        event(pairs=[(key + CANARY, "x") for key in NAUGHTY_KEYS]),
        came_of="accepted",
        unknown=len(NAUGHTY_KEYS),
        payload={},
    )
    yield in_batch(
        "SQL, backticks and quotes in attribute names",
        entry(payload={key + CANARY: "x" for key in NAUGHTY_KEYS}),
        "accepted",
        unknown=len(NAUGHTY_KEYS),
        payload={},
    )
    yield both(
        "SQL, backticks and quotes in a value",
        event("probe", with_={"probe.free": NAUGHTY}),
        came_of="accepted",
        payload={"free": NAUGHTY},
    )
    yield in_batch(
        "SQL, backticks and quotes in a value",
        entry("probe", {"free": NAUGHTY}),
        "accepted",
        payload={"free": NAUGHTY},
    )
    yield both(
        "an attribute of the wrong type",
        event("feature_viewed", with_=FEATURE | {"ui.feature": 7}),
        came_of="invalid_attribute",
        check=blames("ui.feature"),
    )
    yield in_batch(
        "an attribute of the wrong type",
        entry("feature_viewed", {"feature": 7, "surface": "page"}),
        "invalid_attribute",
        check=blames("ui.feature"),
    )
    yield both(
        "a value outside an enum",
        event("feature_viewed", with_=FEATURE | {"ui.surface": CANARY}),
        came_of="invalid_attribute",
        check=blames("ui.surface"),
    )
    yield in_batch(
        "a value outside an enum",
        entry("feature_viewed", {"feature": "feature_list", "surface": CANARY}),
        "invalid_attribute",
        check=blames("ui.surface"),
    )


def _names_and_times() -> Iterator[Attack | list[Attack]]:
    yield both("no event name", event(None, with_={"x.y": CANARY}), came_of="not_an_event")
    yield in_batch("no event name", entry("", sessionId=CANARY), "not_an_event")
    yield both("an unknown event", event(CANARY), came_of="unknown_event", check=nameless)
    yield in_batch("an unknown event", entry(CANARY), "unknown_event", check=nameless)
    two_years = NOW_MS - 730 * DAY_MS
    yield both("a clock two years back", event(time_ms=two_years), came_of="expired")
    yield in_batch("a clock two years back", entry(time_ms=two_years), "expired")
    ahead = NOW_MS + DAY_MS
    observed = {"observedTimeUnixNano": str(HOUR_AGO * 1_000_000)}
    yield both(
        "a clock one day ahead, seen by a Collector",
        event(time_ms=ahead, **observed),
        came_of="accepted",
        check=at(HOUR_AGO, ahead),
    )
    yield both(
        "a clock one day ahead, seen by nobody",
        event(time_ms=ahead),
        came_of="accepted",
        check=at(None, ahead),
    )
    yield in_batch(
        "a clock one day ahead, seen by nobody",
        entry(time_ms=ahead, sentAt=_iso(ahead)),
        "accepted",
        check=at(None, ahead),
    )


def _ids() -> Iterator[Attack | list[Attack]]:
    hostile = {
        "CR in an id": edge("user", 1) + "\r",
        "LF in an id": edge("user", 1) + "\n",
        "NUL in an id": edge("user", 1) + "\0",
        "NUL before an id": "\0" + edge("user", 1),
        "the id null": "null",
        "the id guest": "guest",
        "an empty id": "",
        "an id of 10 KB": CANARY * 440,
    }
    for title, value in hostile.items():
        yield both(
            title,
            event(with_={"enduser.pseudo.id": value}),
            came_of="raw_identifier",
            check=blames("enduser.pseudo.id"),
        )
    yield both(
        "LF in every id",
        *(
            event(with_={key: edge("any", 1) + "\n"})
            for key in ("organisation.id", "enduser.pseudo.id", "user.id", "session.id")
        ),
        came_of="raw_identifier",
    )
    for title, value in (
        ("CR in an id", CANARY + "\r"),
        ("LF in an id", CANARY + "\n"),
        ("NUL in an id", CANARY + "\0"),
        ("an id of 10 KB", CANARY * 440),
    ):
        yield in_batch(f"{title}, hashed here", entry(sessionId=value), "accepted")
    for title, value in (("the id null", "null"), ("the id guest", "guest"), ("an empty id", "")):
        yield in_batch(
            f"{title}, hashed here",
            entry(anonymousUserId=value),
            "accepted",
            check=nobody,
        )
    yield both(
        "CR, LF and NUL in an event id",
        event(with_={"event.id": f"{CANARY}\r\n\0{uuid.uuid4()}"}),
        came_of="accepted",
    )
    yield both("an empty event id", event(with_={"event.id": ""}), came_of="accepted")
    yield both(
        "an event id of 10 KB",
        event(with_={"event.id": CANARY * 440}),
        came_of="invalid_attribute",
        check=blames("event.id"),
    )


def _all() -> Iterator[Attack]:
    for made in (_lines, _numbers, _attributes, _names_and_times, _ids):
        for one in made():
            yield from [one] if isinstance(one, Attack) else one


ATTACKS = {attack.id: attack for attack in _all()}
#: Slices in which attacks stand between good records: name -> attacks.
CROWDS = {
    f"{encoding} {start}": crowd[start : start + 8]
    for encoding in ENCODINGS
    for crowd in [
        [
            item
            for item in ATTACKS.values()
            if item.encoding == encoding and not item.depends_on_neighbours
        ]
    ]
    for start in range(0, len(crowd), 8)
}


# -- landing them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Landed:
    """What came of every slice, and the folder of the warehouse once it has ended."""

    outcomes: dict[str, Outcome]
    furthest: datetime
    latest_partition: datetime
    bomb: tuple[int, list[tuple[str, int]]]
    folder: Path
    printed: bytes

    def alone(self, attack: Attack) -> Outcome:
        return self.outcomes[f"alone: {attack.id}"]


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Landed]:
    """An embedded warehouse of its own that took every attack and ended."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        project = make_project(root, Address("http", "localhost", 1, "nobody", ""), patch)
        (project.catalog_dir / "events" / "probe.yaml").write_text(
            (Path(__file__).parent / "probe.yaml").read_text()
        )
        patch.delenv("CLICKHOUSE_URL")
        process = _start_warehouse(project)
        try:
            with closing(connect(project, session_id=new_session_id())) as client:
                migrate(client)
                found, bomb = _land(client, project), _land_bomb(client, project)
                furthest, partition = client.query(
                    "SELECT max(occurred_at), toDateTime(max(toMonday(occurred_at))) "
                    "FROM raw.product_telemetry_events"
                ).result_rows[0]
                client.command("SYSTEM FLUSH LOGS")
        finally:
            process.send_signal(signal.SIGTERM)
            printed, _ = process.communicate(timeout=20)
        yield Landed(found, furthest, partition, bomb, project.warehouse_dir, printed)


def _start_warehouse(project: Project) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "telemetry_pipeline.warehouse.embedded"),
            *("--data-dir", str(project.warehouse_dir)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    ends = time.monotonic() + 60
    while read_endpoint(project.warehouse_dir) is None:
        assert process.poll() is None and time.monotonic() < ends, "no warehouse"
        time.sleep(0.05)
    return process


def _loader(client: Client, project: Project, source: Any) -> Loader:
    loader = make_loader(client, project, source)
    return replace(loader, keys=replace(loader.keys, edge=read_key("edge", project.keys_dir)))


def _land(client: Client, project: Project) -> dict[str, Outcome]:
    for encoding in ENCODINGS:
        # Only a stream's source hashes ids by itself.
        source = MemorySource(name=encoding, encoding=encoding, hashes_on_read=encoding == BATCH)
        for attack in ATTACKS.values():
            if attack.encoding == encoding:
                source.slices[f"alone: {attack.id}"] = attack.data
                if attack.depends_on_neighbours:
                    beside = framed(b"\xff")  # cannot be parsed
                    source.slices[f"beside: {attack.id}"] = renewed(attack.data) + beside
        for name, crowd in CROWDS.items():
            if crowd[0].encoding == encoding:
                source.slices[name] = good(encoding) + b"".join(
                    renewed(attack.data) + good(encoding) for attack in crowd
                )
        _loader(client, project, source).run(max_bytes=2**40)
    return outcomes(client)


def _land_bomb(client: Client, project: Project) -> tuple[int, list[tuple[str, int]]]:
    """(events that landed, losses) of a sink with a zip bomb beside a good file."""
    active = project.sink_dir / "events.jsonl"
    active.write_bytes(b"".join(good(JSON) for _ in range(5)))
    packed = gzip.compress(line(event(with_={"x.y": CANARY})) + bytes(3 * 2**20))
    (project.sink_dir / "events-2026-05-01T10-00-00.000-size.jsonl.gz").write_bytes(packed)
    source = OtelFileSource("bomb", active, limits=Limits(max_bytes=2**20))
    report = _loader(client, project, source).run(max_bytes=2**40)
    losses = client.query(
        "SELECT toString(reason), end_offset FROM ops.source_losses WHERE source = 'bomb'"
    ).result_rows
    return report.accepted, [(row[0], row[1]) for row in losses]


# -- what became of them -----------------------------------------------------------------------


def _counts(outcome: Outcome) -> dict[str, int]:
    counts = Counter({"accepted": outcome.accepted, "duplicate": outcome.duplicates})
    counts.update(outcome.rejected)
    counts.update(outcome.dropped)
    return {verdict: records for verdict, records in counts.items() if records}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_alone_ends_as_documented(landed: Landed, name: str) -> None:
    attack = ATTACKS[name]
    outcome = landed.alone(attack)

    assert _counts(outcome) == attack.came_of
    assert outcome.received == sum(attack.came_of.values())
    assert outcome.unknown_attributes == attack.unknown
    assert len(outcome.events) == outcome.accepted
    assert len(outcome.letters) == sum(outcome.rejected.values())
    if attack.payload is not None:
        assert outcome.payload == attack.payload
    if attack.check is not None:
        attack.check(outcome)


@pytest.mark.parametrize("name", CROWDS)
def test_the_good_records_between_attacks_all_land(landed: Landed, name: str) -> None:
    crowd, outcome = CROWDS[name], landed.outcomes[name]
    expected = Counter({"accepted": len(crowd) + 1})
    for attack in crowd:
        expected.update(attack.came_of)

    assert _counts(outcome) == expected
    assert outcome.received == expected.total()
    assert [row["route_pattern"] for row in outcome.events].count(CONTROL) == len(crowd) + 1
    assert outcome.unknown_attributes == sum(attack.unknown for attack in crowd)


@pytest.mark.parametrize(
    "name", [name for name, attack in ATTACKS.items() if attack.depends_on_neighbours]
)
def test_a_message_ends_alike_whatever_its_neighbours_are(landed: Landed, name: str) -> None:
    outcome = landed.outcomes[f"beside: {name}"]

    assert _counts(outcome) == Counter(ATTACKS[name].came_of) + Counter({"undecodable": 1})


def test_a_zip_bomb_is_recorded_as_a_loss_and_the_file_beside_it_lands(landed: Landed) -> None:
    assert landed.bomb == (5, [("decompressed_too_large", 2**20)])


def test_no_event_stands_in_the_future(landed: Landed) -> None:
    """What lies ahead would outlive its retention, and its partition would be the last to go."""
    soon = datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=5)

    assert landed.furthest <= soon
    assert landed.latest_partition <= soon


def test_nothing_personal_is_in_a_byte_of_the_warehouse(landed: Landed) -> None:
    found = {text: set[Path]() for text in (CANARY, CONTROL)}
    for path, data in stored(landed.folder):
        for text, paths in found.items():
            if text.encode() in data:
                paths.add(path)

    assert found[CONTROL], "the sweep finds what is stored"
    assert found[CANARY] == set()
    assert CANARY.encode() not in landed.printed


# -- the document ------------------------------------------------------------------------------

NAMES = {JSON: "JSON", PROTO: "protobuf", BATCH: "batch"}
Documented = dict[str, tuple[set[str], set[str]]]  # title -> (encodings, verdicts)


def documented() -> Documented:
    """The rows of docs/hostile_input.md: | Attack | Encodings | `verdict` … | Why |."""
    rows: Documented = {}
    for text in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if text.startswith("| ") and not text.startswith(("| Attack", "|---")):
            title, encodings, outcome, _why = text.strip("| ").split(" | ")
            assert title not in rows, f"{title} stands twice"
            rows[title] = (set(encodings.split(", ")), set(re.findall(r"`(\w+)`", outcome)))
    return rows


def test_the_document_lists_what_the_suite_runs() -> None:
    run: Documented = {"a zip bomb": ({"file"}, {"decompressed_too_large"})}
    for attack in ATTACKS.values():
        encodings, verdicts = run.setdefault(attack.title, (set(), set(attack.came_of)))
        encodings.add(NAMES[attack.encoding])
        assert verdicts == set(attack.came_of), f"{attack.title} ends alike in every encoding"

    assert documented() == run
