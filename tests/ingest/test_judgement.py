"""What becomes of a log record: one row for each reason and for each trap on the way to it."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
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

from telemetry_pipeline.config import Retention
from telemetry_pipeline.ingest.reasons import DROPPED, REJECTED
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.retention import apply_retention

NOW_MS = int(time.time() * 1000)
HOUR_AGO = NOW_MS - 3_600_000
MAIL = "somebody@example.com"
CURRENT_VERSION = "2026-05-telemetry-v1"
FEATURE = {"ui.feature": "feature_list", "ui.surface": "page"}
FILTER = {"ui.view": "audit_log", "ui.filter.key": "environment", "ui.filter.value_count": 3}
SCHEDULED = {"environment.kind": "production", "scheduled_change.delay_hours": 12.5}
ACCEPTED, DUPLICATE = "accepted", "duplicate"


@dataclass(frozen=True)
class Case:
    """A line with one record, and what must come of it.

    `blamed` is the attribute the dead letter names; `columns` and `payload` are of the stored row.
    """

    title: str
    verdict: str
    data: bytes
    blamed: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    payload: Mapping[str, Any] | None = None
    unknown: int = 0

    @property
    def slice(self) -> str:
        """Cases with one outcome share a slice, unless their line is no ordinary one."""
        is_ordinary = self.data.endswith(b"}\n") and self.data.count(b"\n") == 1
        return f"{self.verdict}, {self.unknown} unknown" if is_ordinary else self.title


def event(name: str | None = "page_viewed", time_ms: int | None = HOUR_AGO, **more: Any) -> bytes:
    """A line with one good event; `with_` adds attributes or, as None, leaves them out."""
    attributes = common(
        **{key.replace(".", "__"): value for key, value in more.pop("with_", {}).items()}
    )
    pairs = [*attributes.items(), *more.pop("pairs", [])]
    return line(record(name, pairs, time_ms, more.pop("observed_ms", None), **more))


def feature(**changed: Any) -> bytes:
    return event("feature_viewed", with_=FEATURE | _dotted(changed))


def probe(**changed: Any) -> bytes:
    return event("probe", with_=_dotted(changed))


def filtered(count: Any) -> bytes:
    return event("filter_changed", with_=FILTER | {"ui.filter.value_count": count})


def scheduled(delay: Any, **more: Any) -> bytes:
    return event(
        "scheduled_change.created",
        with_=SCHEDULED | {"scheduled_change.delay_hours": delay} | _dotted(more),
    )


def _dotted(changed: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in changed.items()}


def _consent(value: Any, name: str = "page_viewed") -> bytes:
    return event(name, with_={"consent.analytics": value})


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None)


TWO_YEARS_AGO = NOW_MS - 730 * DAY_MS
EVENT_ID = "01931f6e-7a3c-7c2e-9d55-2f2f0c1f7a10"

CASES = [
    # -- the line ------------------------------------------------------------------------------
    Case("half a line", "undecodable", event()[:-20] + b"\n"),
    Case("text", "undecodable", b"panic: goroutine 7\n"),
    Case("an array instead of an object", "undecodable", b"[1, 2]\n"),
    Case("an array of a good document", "undecodable", b"[" + event().strip() + b"]\n"),
    Case("a JSON string", "undecodable", b'"resourceLogs"\n'),
    Case("traces", "not_logs", b'{"resourceSpans":[{"scopeSpans":[]}]}\n'),
    Case("resourceLogs that is no array", "not_logs", b'{"resourceLogs":{"a":1}}\n'),
    Case("an empty object", "not_logs", b"{}\n"),
    Case("no resource at all", "not_logs", b'{"resourceLogs":[]}\n'),
    Case("resources that are numbers", "not_logs", b'{"resourceLogs":[1,2]}\n'),
    Case(
        "logRecords that is no array",
        "not_logs",
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":{"eventName":"page_viewed"}}]}]}\n',
    ),
    Case("invalid UTF-8", "undecodable", event(with_={"x.y": "a?b"}).replace(b"a?b", b"a\xffb")),
    Case("a NUL byte", "undecodable", event(with_={"x.y": "a?b"}).replace(b"a?b", b"a\x00b")),
    Case(
        "a lone surrogate", "undecodable", event(with_={"x.y": "a?b"}).replace(b"a?b", b"\\ud800")
    ),
    Case(
        "2^64 as a JSON number",
        "invalid_attribute",
        filtered({"intValue": 2**64}),
        "ui.filter.value_count",
    ),
    Case("nesting 5,000 deep", "undecodable", b"[" * 5000 + b"]" * 5000 + b"\n"),
    Case("a line without a newline", ACCEPTED, event().strip()),
    Case("a line that ends with CR LF", ACCEPTED, event().strip() + b"\r\n"),
    Case("empty and blank lines around it", ACCEPTED, b"\n\r\n \t\r\n" + event() + b"\n\r\n"),
    Case("a byte order mark", ACCEPTED, b"\xef\xbb\xbf" + event()),
    # -- is it an event ------------------------------------------------------------------------
    Case("no event name", "not_an_event", event(None)),
    Case("an empty event name", "not_an_event", event("")),
    Case("an empty log record", "not_logs", line({})),
    Case("a log record with only a body", "not_an_event", line({"body": {"stringValue": MAIL}})),
    Case("a log record that is null", "not_logs", line(None)),
    Case(
        "the name in otel.event.name",
        ACCEPTED,
        event(None, with_={"otel.event.name": "page_viewed"}),
        columns={"name": "page_viewed"},
    ),
    Case(
        "the name in event.name",
        ACCEPTED,
        event(None, with_={"event.name": "page_viewed"}),
        columns={"name": "page_viewed"},
    ),
    Case(
        "eventName before otel.event.name before event.name",
        ACCEPTED,
        event("page_viewed", with_={"event.name": "probe", "otel.event.name": "trial_started"}),
        columns={"name": "page_viewed"},
    ),
    Case(
        "otel.event.name before event.name",
        ACCEPTED,
        event(None, with_={"event.name": "probe", "otel.event.name": "page_viewed"}),
        columns={"name": "page_viewed"},
    ),
    # -- consent -------------------------------------------------------------------------------
    Case("consent absent", "consent_absent", _consent(None)),
    Case("consent denied", "consent_denied", _consent("denied")),
    Case("consent of another value", "consent_denied", _consent("Granted")),
    Case("consent as an empty string", "consent_denied", _consent("")),
    Case("consent as a boolean", "consent_denied", _consent(True)),
    Case("consent as an empty AnyValue", "consent_absent", _consent({})),
    Case("consent with a newline", "consent_denied", _consent("granted\n")),
    Case(
        "consent twice, denied first",
        "consent_denied",
        event(
            with_={"consent.analytics": None},
            pairs=[("consent.analytics", "denied"), ("consent.analytics", "granted")],
        ),
    ),
    # -- the order of judgement ----------------------------------------------------------------
    Case("no event and no consent", "not_an_event", _consent("denied", "")),
    Case("no consent and unknown", "consent_denied", _consent("denied", "never_heard_of")),
    Case(
        "no consent and a raw id",
        "consent_absent",
        event(with_={"consent.analytics": None, "user.id": MAIL}),
    ),
    Case("unknown and expired", "unknown_event", event("never_heard_of", TWO_YEARS_AGO)),
    Case(
        "expired and a raw id",
        "expired",
        event(time_ms=TWO_YEARS_AGO, with_={"enduser.pseudo.id": MAIL}),
    ),
    Case(
        "a raw id and an invalid attribute",
        "raw_identifier",
        event(with_={"session.id": "7", "url.template": "x"}),
        "session.id",
    ),
    Case(
        "an invalid and a missing attribute",
        "invalid_attribute",
        event("feature_viewed", with_={"ui.surface": "cellar"}),
        "ui.surface",
    ),
    # -- the event -----------------------------------------------------------------------------
    Case("an unknown event", "unknown_event", event("never_heard_of")),
    Case("an event name that is a mail address", "unknown_event", event(MAIL)),
    Case("an event name in another case", "unknown_event", event("Page_Viewed")),
    Case("an event name with a newline", "unknown_event", event("page_viewed\n")),
    Case("an event name with SQL", "unknown_event", event("'; DROP TABLE raw.landing --")),
    # -- time ----------------------------------------------------------------------------------
    Case("two years back", "expired", event(time_ms=TWO_YEARS_AGO)),
    Case("one nanosecond after 1970", "expired", event(time_ms=None, timeUnixNano="1")),
    Case("178 days back", ACCEPTED, event(time_ms=NOW_MS - 178 * DAY_MS)),
    Case("180 days back", "expired", event(time_ms=NOW_MS - 180 * DAY_MS)),
    Case(
        "its own time",
        ACCEPTED,
        event(time_ms=HOUR_AGO, observed_ms=HOUR_AGO + 5000),
        columns={"occurred_at": _at(HOUR_AGO), "claimed_occurred_at": None},
    ),
    Case(
        "time absent, so the observed one",
        ACCEPTED,
        event(time_ms=None, observed_ms=HOUR_AGO),
        columns={"occurred_at": _at(HOUR_AGO), "claimed_occurred_at": None},
    ),
    Case(
        "time 0, so the observed one",
        ACCEPTED,
        event(time_ms=0, observed_ms=HOUR_AGO),
        columns={"occurred_at": _at(HOUR_AGO)},
    ),
    Case(
        "time as a JSON number",
        ACCEPTED,
        event(time_ms=None, timeUnixNano=HOUR_AGO * 1_000_000),
        columns={"occurred_at": _at(HOUR_AGO)},
    ),
    Case(
        "a clock an hour ahead",
        ACCEPTED,
        event(time_ms=NOW_MS + 3_600_000, observed_ms=HOUR_AGO),
        columns={"occurred_at": _at(HOUR_AGO), "claimed_occurred_at": _at(NOW_MS + 3_600_000)},
    ),
    Case(
        "a clock in the year 2500",
        ACCEPTED,
        event(time_ms=None, observed_ms=HOUR_AGO, timeUnixNano=str(2**64 - 1)),
        columns={"occurred_at": _at(HOUR_AGO)},
    ),
    Case(
        "a clock a minute ahead",
        ACCEPTED,
        event(time_ms=NOW_MS + 60_000),
        columns={"occurred_at": _at(NOW_MS + 60_000), "claimed_occurred_at": None},
    ),
    # -- identifiers ---------------------------------------------------------------------------
    *(
        Case(f"{key} as {title}", "raw_identifier", event(with_={key: value}), key)
        for key in ("organisation.id", "enduser.pseudo.id", "session.id")
        for title, value in (
            ("a mail address", MAIL),
            ("a number", 4711),
            ("an empty string", ""),
            ("an edge id with a newline", edge("user", 1) + "\n"),
            ("an edge id in upper case", edge("user", 1).upper()),
        )
    ),
    Case(
        "user.id as a raw id",
        "raw_identifier",
        event(with_={"enduser.pseudo.id": None, "user.id": "4711"}),
        "user.id",
    ),
    Case(
        "a raw user.id behind an edge id",
        "raw_identifier",
        event(with_={"user.id": MAIL}),
        "user.id",
    ),
    Case(
        "an edge id that is too short",
        "raw_identifier",
        event(with_={"session.id": edge("s", 1)[:-1]}),
        "session.id",
    ),
    Case(
        "an edge id without its key's id",
        "raw_identifier",
        event(with_={"session.id": edge("s", 1)[3:]}),
        "session.id",
    ),
    Case(
        "user.id where enduser.pseudo.id is absent",
        ACCEPTED,
        event(with_={"enduser.pseudo.id": None, "user.id": edge("user", 1)}),
    ),
    Case(
        "no identifier at all",
        ACCEPTED,
        event(with_={"enduser.pseudo.id": None, "organisation.id": None, "session.id": None}),
        columns={"anonymous_user_id": None, "org_id_hash": None, "session_id": None},
    ),
    Case(
        "identifiers that are empty AnyValues",
        ACCEPTED,
        event(with_={"enduser.pseudo.id": {}, "organisation.id": {}, "session.id": {}}),
        columns={"anonymous_user_id": None, "org_id_hash": None, "session_id": None},
    ),
    # -- columns -------------------------------------------------------------------------------
    Case("service.name", ACCEPTED, event(), columns={"source": "web"}),
    Case(
        "no service.name",
        ACCEPTED,
        line(record("page_viewed", common(), HOUR_AGO), service=None),
        columns={"source": None},
    ),
    Case("schema.version absent", ACCEPTED, event(), columns={"schema_version": CURRENT_VERSION}),
    Case(
        "schema.version as it came",
        ACCEPTED,
        event(with_={"schema.version": "2025-01-old"}),
        columns={"schema_version": "2025-01-old"},
    ),
    Case(
        "schema.version of another shape",
        "invalid_attribute",
        event(with_={"schema.version": "v1"}),
        "schema.version",
    ),
    Case(
        "url.template before http.route",
        ACCEPTED,
        event(with_={"http.route": "/b", "url.template": "/a/:id"}),
        columns={"route_pattern": "/a/:id"},
    ),
    Case(
        "http.route", ACCEPTED, event(with_={"http.route": "/b"}), columns={"route_pattern": "/b"}
    ),
    Case("no route", ACCEPTED, event(), columns={"route_pattern": None}),
    Case(
        "a concrete URL",
        "invalid_attribute",
        event(with_={"url.template": "/users/4711"}),
        "url.template",
    ),
    Case(
        "an event id",
        ACCEPTED,
        event(with_={"event.id": EVENT_ID}),
        columns={"event_id": uuid.UUID(EVENT_ID)},
    ),
    Case(
        "an event id that is a number",
        "invalid_attribute",
        event(with_={"event.id": 7}),
        "event.id",
    ),
    Case("nothing else to say", ACCEPTED, event(), payload={}),
    # -- attribute types -----------------------------------------------------------------------
    Case("a string", ACCEPTED, feature(), payload={"feature": "feature_list", "surface": "page"}),
    Case(
        "a number where a string is due", "invalid_attribute", feature(ui__feature=7), "ui.feature"
    ),
    Case(
        "a boolean where a string is due",
        "invalid_attribute",
        feature(ui__feature=True),
        "ui.feature",
    ),
    Case(
        "an array where a string is due",
        "invalid_attribute",
        feature(ui__feature={"arrayValue": {"values": [{"stringValue": "x"}]}}),
        "ui.feature",
    ),
    Case(
        "a map where a string is due",
        "invalid_attribute",
        feature(ui__feature={"kvlistValue": {"values": []}}),
        "ui.feature",
    ),
    Case(
        "bytes where a string is due",
        "invalid_attribute",
        feature(ui__feature={"bytesValue": "aGVsbG8="}),
        "ui.feature",
    ),
    Case(
        "an int",
        ACCEPTED,
        filtered(3),
        payload={"view": "audit_log", "filterKey": "environment", "valueCount": 3},
    ),
    Case(
        "an int as a JSON number",
        ACCEPTED,
        filtered({"intValue": 3}),
        payload={"view": "audit_log", "filterKey": "environment", "valueCount": 3},
    ),
    Case(
        "a string where an int is due", "invalid_attribute", filtered("3"), "ui.filter.value_count"
    ),
    Case(
        "a double where an int is due", "invalid_attribute", filtered(3.5), "ui.filter.value_count"
    ),
    Case(
        "an int that is text",
        "invalid_attribute",
        filtered({"intValue": "three"}),
        "ui.filter.value_count",
    ),
    Case(
        "an int that is an object",
        "invalid_attribute",
        filtered({"intValue": {"a": 3}}),
        "ui.filter.value_count",
    ),
    Case(
        "an int with a fraction",
        "invalid_attribute",
        filtered({"intValue": 3.5}),
        "ui.filter.value_count",
    ),
    Case("the largest int64", ACCEPTED, probe(probe__int=2**63 - 1), payload={"anyInt": 2**63 - 1}),
    Case("the smallest int64", ACCEPTED, probe(probe__int=-(2**63)), payload={"anyInt": -(2**63)}),
    Case("2^63", "invalid_attribute", probe(probe__int=2**63), "probe.int"),
    Case("2^64", "invalid_attribute", probe(probe__int=2**64), "probe.int"),
    Case(
        "2^63 as a JSON number",
        "invalid_attribute",
        probe(probe__int={"intValue": 2**63}),
        "probe.int",
    ),
    Case("-2^63 - 1", "invalid_attribute", probe(probe__int=-(2**63) - 1), "probe.int"),
    Case(
        "a double",
        ACCEPTED,
        scheduled(12.5),
        payload={"environmentKind": "production", "delayHours": 12.5},
    ),
    Case(
        "an int where a double is due",
        ACCEPTED,
        scheduled(12),
        payload={"environmentKind": "production", "delayHours": 12},
    ),
    Case(
        "an int64 overflow where a double is due",
        "invalid_attribute",
        scheduled(2**63),
        "scheduled_change.delay_hours",
    ),
    Case(
        "text as an int where a double is due",
        "invalid_attribute",
        scheduled({"intValue": "many"}),
        "scheduled_change.delay_hours",
    ),
    Case(
        "a fraction as an int where a double is due",
        "invalid_attribute",
        scheduled({"intValue": "1.5"}),
        "scheduled_change.delay_hours",
    ),
    Case(
        "NaN",
        "invalid_attribute",
        scheduled({"doubleValue": "NaN"}),
        "scheduled_change.delay_hours",
    ),
    Case(
        "Infinity",
        "invalid_attribute",
        scheduled({"doubleValue": "Infinity"}),
        "scheduled_change.delay_hours",
    ),
    Case(
        "-Infinity",
        "invalid_attribute",
        scheduled({"doubleValue": "-Infinity"}),
        "scheduled_change.delay_hours",
    ),
    Case(
        "NaN in an optional attribute",
        "invalid_attribute",
        probe(probe__double={"doubleValue": "NaN"}),
        "probe.double",
    ),
    Case(
        "a double that is text",
        "invalid_attribute",
        probe(probe__double={"doubleValue": "much"}),
        "probe.double",
    ),
    Case(
        "a double that is an object",
        "invalid_attribute",
        probe(probe__double={"doubleValue": {"a": 1}}),
        "probe.double",
    ),
    Case(
        "a double as a string",
        ACCEPTED,
        probe(probe__double={"doubleValue": "2.5"}),
        payload={"anyDouble": 2.5},
    ),
    Case("a large double", ACCEPTED, probe(probe__double=1e300), payload={"anyDouble": 1e300}),
    Case("a small double", ACCEPTED, probe(probe__double=5e-324), payload={"anyDouble": 5e-324}),
    Case("a negative zero", ACCEPTED, probe(probe__double=-0.0), payload={"anyDouble": 0.0}),
    Case(
        "a double too large to be one",
        "undecodable",
        probe(probe__double=0.5).replace(b"0.5", b"1e400"),
    ),
    Case("a boolean", ACCEPTED, probe(probe__flag=True), payload={"flag": True}),
    Case("false", ACCEPTED, probe(probe__flag=False), payload={"flag": False}),
    Case(
        "a string where a boolean is due",
        "invalid_attribute",
        probe(probe__flag="true"),
        "probe.flag",
    ),
    Case(
        "a boolean that is text",
        "invalid_attribute",
        probe(probe__flag={"boolValue": "yes"}),
        "probe.flag",
    ),
    Case(
        "a boolean that is a number",
        "invalid_attribute",
        probe(probe__flag={"boolValue": 1}),
        "probe.flag",
    ),
    # -- limits --------------------------------------------------------------------------------
    Case("the smallest allowed", ACCEPTED, filtered(0)),
    Case("the largest allowed", ACCEPTED, filtered(1000)),
    Case("below the smallest allowed", "invalid_attribute", filtered(-1), "ui.filter.value_count"),
    Case("above the largest allowed", "invalid_attribute", filtered(1001), "ui.filter.value_count"),
    Case("the smallest allowed fraction", ACCEPTED, probe(probe__ratio=0.5)),
    Case("the largest allowed fraction", ACCEPTED, probe(probe__ratio=1.5)),
    Case(
        "below the smallest allowed fraction",
        "invalid_attribute",
        probe(probe__ratio=0.4999),
        "probe.ratio",
    ),
    Case(
        "above the largest allowed fraction",
        "invalid_attribute",
        probe(probe__ratio=1.5001),
        "probe.ratio",
    ),
    Case("a member of an enum", ACCEPTED, feature(ui__surface="modal")),
    Case("no member of an enum", "invalid_attribute", feature(ui__surface="Modal"), "ui.surface"),
    Case("an empty string in an enum", "invalid_attribute", feature(ui__surface=""), "ui.surface"),
    Case(
        "a member of another enum", "invalid_attribute", feature(ui__surface="hover"), "ui.surface"
    ),
    Case("a pattern", ACCEPTED, feature(ui__feature="a1")),
    Case(
        "a pattern with a newline at the end",
        "invalid_attribute",
        feature(ui__feature="feature_list\n"),
        "ui.feature",
    ),
    Case(
        "a pattern with text before it",
        "invalid_attribute",
        feature(ui__feature="x\nfeature_list"),
        "ui.feature",
    ),
    Case("both branches of a pattern: the first", ACCEPTED, probe(probe__mark="it's")),
    Case("both branches of a pattern: the second", ACCEPTED, probe(probe__mark="7.5")),
    Case(
        "a branch of a pattern with more after it",
        "invalid_attribute",
        probe(probe__mark="it's me"),
        "probe.mark",
    ),
    Case(
        "an escaped dot of a pattern", "invalid_attribute", probe(probe__mark="7x5"), "probe.mark"
    ),
    Case("as long as allowed", ACCEPTED, probe(probe__text="12345")),
    Case("longer than allowed", "invalid_attribute", probe(probe__text="123456"), "probe.text"),
    Case("length counts characters", ACCEPTED, probe(probe__text="äöüß€")),
    Case(
        "length counts characters, six of them",
        "invalid_attribute",
        probe(probe__text="äöüß€x"),
        "probe.text",
    ),
    # -- presence ------------------------------------------------------------------------------
    Case(
        "a required attribute is missing",
        "missing_attribute",
        feature(ui__feature=None),
        "ui.feature",
    ),
    Case(
        "a required attribute is an empty AnyValue",
        "missing_attribute",
        feature(ui__feature={}),
        "ui.feature",
    ),
    Case(
        "a required attribute is null",
        "missing_attribute",
        feature(ui__feature={"stringValue": None}),
        "ui.feature",
    ),
    Case(
        "an attribute twice: the first counts",
        ACCEPTED,
        event("feature_viewed", with_=FEATURE, pairs=[("ui.feature", "NOT VALID")]),
        payload={"feature": "feature_list", "surface": "page"},
    ),
    Case(
        "an attribute twice: the first is invalid",
        "invalid_attribute",
        event(
            "feature_viewed",
            with_={"ui.feature": "NOT VALID", "ui.surface": "page"},
            pairs=[("ui.feature", "feature_list")],
        ),
        "ui.feature",
    ),
    Case("unknown attributes", ACCEPTED, event(with_={"x.y": MAIL, "z": 7}), payload={}, unknown=2),
    Case(
        "an attribute of another event",
        ACCEPTED,
        event(with_={"ui.feature": "feature_list"}),
        payload={},
        unknown=1,
    ),
    Case(
        "a payload key as an attribute key",
        ACCEPTED,
        feature(feature="x"),
        payload={"feature": "feature_list", "surface": "page"},
        unknown=1,
    ),
    Case(
        "an attribute that carries the name",
        ACCEPTED,
        event(with_={"event.name": "page_viewed"}),
        unknown=0,
    ),
    Case(
        "an attribute that must never be stored",
        ACCEPTED,
        event(with_={"user.email": MAIL}),
        payload={},
        unknown=0,
    ),
    Case(
        "attributes that are an object",
        "consent_absent",
        line({"eventName": "page_viewed", "attributes": {"a": 1}}),
    ),
    Case(
        "an attribute that is a string",
        ACCEPTED,
        line(record("page_viewed", common(), HOUR_AGO)).replace(
            b'"attributes":[{"key":"event.id"', b'"attributes":["x",{"key":"event.id"'
        ),
    ),
    # -- text that is hostile to SQL and JSON --------------------------------------------------
    Case(
        "quotes and SQL",
        ACCEPTED,
        probe(probe__free="'\"; DROP TABLE x --\\"),
        payload={"free": "'\"; DROP TABLE x --\\"},
    ),
    Case(
        "control characters and NUL",
        ACCEPTED,
        probe(probe__free="\x00\x01\t\n\x7f"),
        payload={"free": "\x00\x01\t\n\x7f"},
    ),
    Case(
        "braces as in a query parameter",
        ACCEPTED,
        probe(probe__free="{secret_key_user:String} {{pairs}}"),
        payload={"free": "{secret_key_user:String} {{pairs}}"},
    ),
    Case(
        "an emoji and a line separator",
        ACCEPTED,
        probe(probe__free="🙂\u2028"),
        payload={"free": "🙂\u2028"},
    ),
    Case(
        "quotes in an attribute key",
        ACCEPTED,
        event(with_={"a'\"b\\": "x", "c\nd": "y"}),
        payload={},
        unknown=2,
    ),
    Case(
        "quotes in the service",
        ACCEPTED,
        line(record("page_viewed", common(), HOUR_AGO), service="o'\"\\"),
        columns={"source": "o'\"\\"},
    ),
    Case("a line of 2 MB", ACCEPTED, event(with_={"x.y": "z" * 2_000_000}), unknown=1),
    Case(
        "a dead letter of 2 MB",
        "unknown_event",
        event("never_heard_of", with_={"x.y": "z" * 2_000_000}),
    ),
    Case(
        "a value nested 200 deep",
        ACCEPTED,
        event(with_={"x.y": json.loads('{"arrayValue":{"values":[' * 200 + "]}}" * 200)}),
        unknown=1,
    ),
]
BY_TITLE = {case.title: case for case in CASES}


SLICES: dict[str, list[Case]] = {}
for _case in CASES:
    SLICES.setdefault(_case.slice, []).append(_case)


@pytest.fixture(scope="module")
def judged(shared_client: Client, shared_project: Project) -> dict[str, Outcome]:
    """Every slice landed, by its name."""
    shutil.copy(Path(__file__).parent / "probe.yaml", shared_project.catalog_dir / "events")
    source = MemorySource(
        {name: b"".join(case.data for case in cases) for name, cases in SLICES.items()}
    )
    make_loader(shared_client, shared_project, source).run(max_bytes=2**40)
    return outcomes(shared_client)


def _line_of(case: Case) -> int:
    """Where the case's line stands in its slice; blank lines have numbers, too."""
    cases = SLICES[case.slice]
    before = b"".join(other.data for other in cases[: cases.index(case)])
    lines = case.data.split(b"\n")
    own = next((number for number, line in enumerate(lines) if line.strip(b" \t\r")), 0)
    return before.count(b"\n") + own


@pytest.mark.parametrize("title", BY_TITLE)
def test_a_record_is_judged(judged: dict[str, Outcome], title: str) -> None:
    case = BY_TITLE[title]
    outcome = judged[case.slice].of_line(_line_of(case))

    assert outcome.verdict == case.verdict
    if case.verdict in REJECTED:
        (letter,) = outcome.letters
        assert (letter["reason"], letter["field"]) == (case.verdict, case.blamed)
    if case.verdict == ACCEPTED:
        assert {name: outcome.event[name] for name in case.columns} == case.columns
    if case.payload is not None:
        assert outcome.payload == case.payload


@pytest.mark.parametrize("name", SLICES)
def test_a_slice_is_counted(judged: dict[str, Outcome], name: str) -> None:
    cases, outcome = SLICES[name], judged[name]

    assert outcome.received == len(cases)
    assert outcome.unknown_attributes == sum(case.unknown for case in cases)
    assert outcome.rejected | outcome.dropped == (
        {} if cases[0].verdict == ACCEPTED else {cases[0].verdict: len(cases)}
    )


def test_every_reason_has_a_row() -> None:
    elsewhere = {"consent_withdrawn", "erased", "event_id_conflict"}

    assert {case.verdict for case in CASES} == {*DROPPED, *REJECTED, ACCEPTED} - elsewhere


def test_titles_are_unique() -> None:
    assert len(BY_TITLE) == len(CASES)


# -- ids and times over several slices ---------------------------------------------------------


@dataclass
class Ingested:
    """Lands lines, each call as a slice of its own, and says what came of it."""

    client: Client
    project: Project
    slices: int = 0

    def __call__(self, *lines: bytes, absent_consent: str = "drop") -> Outcome:
        self.slices += 1
        name = f"slice {self.slices}"
        policy = self.project.config_file.read_text()
        self.project.config_file.write_text(
            policy.replace("absent: drop", f"absent: {absent_consent}")
        )
        try:
            source = MemorySource({name: b"".join(lines)}, name="ids")
            make_loader(self.client, self.project, source).run(max_bytes=2**40)
        finally:
            self.project.config_file.write_text(policy)
        return outcomes(self.client)[name]


@pytest.fixture(scope="module")
def land(judged: dict[str, Outcome], shared_client: Client, shared_project: Project) -> Ingested:
    return Ingested(shared_client, shared_project)


def test_an_event_without_consent_is_accepted_where_the_policy_says_so(land: Ingested) -> None:
    absent, denied = _consent(None), _consent("denied")

    outcome = land(absent, denied, absent_consent="accept")

    assert outcome.accepted == 1
    assert outcome.dropped == {"consent_denied": 1}


def test_the_same_event_twice_is_one_event_and_one_duplicate(land: Ingested) -> None:
    data = event()

    in_one_slice, in_the_next = land(data, data), land(data)

    assert (in_one_slice.accepted, in_one_slice.duplicates) == (1, 1)
    assert (in_the_next.accepted, in_the_next.duplicates) == (0, 1)


def test_an_event_without_an_id_gets_one_that_is_the_same_in_every_slice(land: Ingested) -> None:
    data = event(with_={"event.id": None})
    another = event(time_ms=HOUR_AGO + 1, with_={"event.id": None})

    first, second = land(data, another), land(data, another)

    assert (first.accepted, second.accepted, second.duplicates) == (2, 0, 2)
    assert len({row["event_id"] for row in first.events}) == 2


def test_an_event_without_id_and_time_is_known_again(land: Ingested) -> None:
    data = event("probe", time_ms=None, with_={"event.id": None, "probe.free": "timeless"})
    with_id = event(time_ms=None)

    first = land(data, with_id)
    time.sleep(0.01)
    second = land(data, with_id)

    assert (first.accepted, second.duplicates, second.rejected) == (2, 2, {})
    assert {row["occurred_at"] for row in first.events} == {first.events[0]["ingested_at"]}


@pytest.mark.parametrize(
    "text",
    [
        "order-4711",
        MAIL,
        "z1931f6e-7a3c-7c2e-9d55-2f2f0c1f7a10",
        "01931f6e-7a3c-7c2e-9d55-2f2f0c1f7a10 ",
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_an_event_id_that_is_no_uuid_is_hashed(land: Ingested, text: str) -> None:
    data, other = event(with_={"event.id": text}), event(with_={"event.id": f"{text}?"})

    first, second = land(data, other), land(data)

    assert (first.accepted, second.duplicates) == (2, 1)
    ids = {row["event_id"] for row in first.events}
    assert len(ids) == 2
    assert not ids & {uuid.UUID(int=0), uuid.UUID(EVENT_ID)}


def test_an_event_id_in_upper_case_is_the_same_id(land: Ingested) -> None:
    text = str(uuid.uuid4())

    outcome = land(event(with_={"event.id": text}), event(with_={"event.id": text.upper()}))

    assert (outcome.accepted, outcome.duplicates) == (1, 1)


@pytest.mark.parametrize("apart", ["in one slice", "in two slices"])
@pytest.mark.parametrize(
    ("name", "time_ms"),
    [("probe", HOUR_AGO), ("page_viewed", HOUR_AGO + 1), ("page_viewed", HOUR_AGO - DAY_MS)],
)
def test_an_event_id_with_another_name_or_time_is_a_conflict(
    land: Ingested, name: str, time_ms: int, apart: str
) -> None:
    used = {"event.id": str(uuid.uuid4())}
    first, second = event(with_=used), event(name, time_ms, with_=used)

    if apart == "in one slice":
        outcome = land(first, second)
        assert outcome.accepted == 1
    else:
        land(first)
        outcome = land(second)

    assert outcome.rejected == {"event_id_conflict": 1}
    assert [letter["reason"] for letter in outcome.letters] == ["event_id_conflict"]


def test_an_event_id_of_last_week_is_another_event(land: Ingested) -> None:
    used = {"event.id": str(uuid.uuid4())}

    outcome = land(event(with_=used), event(time_ms=HOUR_AGO - 7 * DAY_MS, with_=used))
    later = land(event(time_ms=HOUR_AGO - 30 * DAY_MS, with_=used))

    assert outcome.rejected == {"event_id_conflict": 1}, "in one slice both are looked at"
    assert later.accepted == 1


def test_a_clock_ahead_is_corrected_and_its_repetition_is_still_known(land: Ingested) -> None:
    used = {"event.id": str(uuid.uuid4())}
    ahead = NOW_MS + 7_200_000
    first = event(time_ms=ahead, observed_ms=HOUR_AGO, with_=used)
    again = event(time_ms=ahead, observed_ms=HOUR_AGO + 60_000, with_=used)

    assert (land(first).accepted, land(again).duplicates) == (1, 1)


@pytest.mark.parametrize(
    ("table", "kind", "reason"),
    [
        ("erasure_tombstones", "user", "erased"),
        ("erasure_tombstones", "organisation", "erased"),
        ("erasure_tombstones", "session", "erased"),
        ("consent_withdrawals", "user", "consent_withdrawn"),
        ("consent_withdrawals", "session", "consent_withdrawn"),
    ],
)
def test_a_person_who_was_erased_or_withdrew_is_dropped(
    land: Ingested, table: str, kind: str, reason: str
) -> None:
    column = {"user": "anonymous_user_id", "organisation": "org_id_hash", "session": "session_id"}
    key = {"user": "enduser.pseudo.id", "organisation": "organisation.id", "session": "session.id"}
    theirs = {key[kind]: edge(kind, f"{table} {kind}")}
    subject = land(event(with_=theirs)).event[column[kind]]
    land.client.command(
        f"INSERT INTO privacy.{table} (subject_kind, subject) VALUES ('{kind}', {subject})"
    )

    outcome = land(
        event(with_=theirs),
        event("never_heard_of", with_=theirs),
        event(with_=theirs | {"url.template": "x"}),
        event(),
    )

    assert outcome.accepted == 1
    assert outcome.dropped == {reason: 3}
    assert not outcome.letters


def test_a_slice_over_four_years_lands_where_so_much_is_kept(land: Ingested) -> None:
    weeks = [event(time_ms=HOUR_AGO - week * 7 * DAY_MS) for week in range(200)]
    policy = land.project.config_file.read_text()
    land.project.config_file.write_text(policy.replace("raw_days: 180", "raw_days: 1500"))
    empty = "TRUNCATE TABLE raw.product_telemetry_events_storage"
    land.client.command(empty)  # or the engine rewrites every part for its new TTL
    apply_retention(land.client, Retention(raw_days=1500))
    try:
        outcome = land(*weeks)
    finally:
        land.client.command(empty)
        land.project.config_file.write_text(policy)
        apply_retention(land.client, Retention())

    assert (outcome.received, outcome.accepted) == (200, 200)
