"""A plain, slow judge of log records, to hold the engine against.

It is written from ARCHITECTURE.md's order of judgement, reads the catalogue's YAML by itself, and
looks at one message object after the other. Nothing here knows the statements that ingest runs.

Where the definitions are silent, the oracle says so by being vague (a letter may name any of the
attributes that are at fault) or takes the reading that these lines state:

- An attribute with an empty key is no attribute (OTLP forbids it).
- The name in otel.event.name counts even if it is empty: then there is no event.
- A name that is no text is not in the catalogue; one of no bytes is empty.
- A UUID without its dashes, or in capitals, is the same UUID.
- Times count in whole milliseconds; what is claimed to be after 2299 is claimed for its end.
- A column is filled by the first of its attributes that is present, also where that one is raw.
- An event without an id is the same event when its service, name, claimed time, ids, route and
  payload, in the order they came, are the same.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from opentelemetry.proto_json.common.v1.common import AnyValue, KeyValue
from opentelemetry.proto_json.logs.v1.logs import LogRecord, LogsData

from telemetry_pipeline.identity.keys import Key

DAY_MS = 86_400_000
CLOCK_TOLERANCE_MS = 5 * 60_000
END_OF_2299_MS = 10_413_791_999_000
EDGE_ID = re.compile(r"e[a-z0-9]{1,16}_[0-9a-f]{64}")
UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")
KINDS = ("string", "int", "double", "bool", "array", "kvlist", "bytes")
KIND_OF_TYPE = {"string": "string", "int": "int", "double": "double", "boolean": "bool"}
NAME_KEYS = ("otel.event.name", "event.name")
#: Column of the event -> the kind of subject its pseudonym is of.
SUBJECTS = {
    "org_id_hash": "organisation",
    "anonymous_user_id": "user",
    "session_id": "session",
}
DROPPED = {
    "not_an_event",
    "consent_absent",
    "consent_denied",
    "consent_withdrawn",
    "erased",
    "expired",
}


@dataclass(frozen=True)
class NoRecords:
    """A line in which nobody finds a log record, and why."""

    raw: bytes
    reason: str


Line = LogsData | NoRecords


@dataclass(frozen=True)
class Hashed:
    """An event id that ingest makes: the same for the same content, whatever its bytes are."""

    content: tuple[Any, ...]


EventId = uuid.UUID | Hashed


@dataclass(frozen=True)
class Row:
    """What an accepted event must look like; the payload's numbers count by value."""

    event_id: EventId
    columns: dict[str, Any]
    payload: dict[str, Any]


@dataclass(frozen=True)
class Letter:
    """What a dead letter must look like. `fields`: the attributes it may blame, or none."""

    reason: str
    fields: frozenset[str]
    columns: dict[str, Any]
    record: dict[str, Any] | None = None
    raw: bytes | None = None


@dataclass
class Expected:
    """What must come of one slice; rows and letters in the order of the records."""

    received: int = 0
    duplicates: int = 0
    unknown_attributes: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    rows: list[Row] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)


@dataclass(frozen=True)
class Policy:
    """catalog/ and telemetry.yaml as this judge reads them: plain YAML."""

    attributes: Mapping[str, dict[str, Any]]
    events: Mapping[str, dict[str, str]]  # event -> attribute -> requirement level
    versions: Mapping[str, str]
    drops_absent_consent: bool
    raw_days: int

    @classmethod
    def read(cls, root: Path) -> Policy:
        attributes: dict[str, dict[str, Any]] = {}
        groups: dict[str, list[dict[str, Any]]] = {}
        events: dict[str, dict[str, Any]] = {}
        for file in sorted((root / "catalog").rglob("*.yaml")):
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
            attributes |= {item["key"]: item for item in document.get("attributes", [])}
            groups |= {
                item["id"]: item["attributes"] for item in document.get("attribute_groups", [])
            }
            events |= {item["name"]: item for item in document.get("events", [])}
        settings = yaml.safe_load((root / "telemetry.yaml").read_text(encoding="utf-8"))
        return cls(
            attributes,
            {name: _levels(event, groups) for name, event in events.items()},
            {name: event["annotations"]["schema_version"] for name, event in events.items()},
            drops_absent_consent=settings["consent"]["absent"] == "drop",
            raw_days=settings["retention"]["raw_days"],
        )

    def annotation(self, key: str, name: str) -> Any:
        return self.attributes.get(key, {}).get("annotations", {}).get(name)

    def keys_of(self, column: str) -> list[str]:
        """The attributes that fill a column, the first of them first."""
        return [key for key in self.attributes if self.annotation(key, "column") == column]


def _levels(event: dict[str, Any], groups: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    levels: dict[str, str] = {}
    for item in event["attributes"]:
        for reference in groups[item["ref_group"]] if "ref_group" in item else [item]:
            levels[reference["ref"]] = reference["requirement_level"]
    return levels


@dataclass(frozen=True)
class Value:
    """What an AnyValue carries: its kind and the Python value."""

    kind: str
    value: Any

    @property
    def text(self) -> str | None:
        return self.value if self.kind == "string" else None


def value_of(any_value: AnyValue | None) -> Value | None:
    """None for an attribute without a value: no AnyValue, or one that carries nothing."""
    for kind in KINDS if any_value is not None else ():
        value = getattr(any_value, f"{kind}_value")
        if value is not None:
            return Value(kind, value)
    return None


def first_values(attributes: Sequence[KeyValue]) -> dict[str, Value]:
    """The attributes that are present, in order; of one that stands twice, the first."""
    found: dict[str, Value] = {}
    for item in attributes:
        value = value_of(item.value)
        if item.key and value is not None:
            found.setdefault(item.key, value)
    return found


@dataclass(frozen=True)
class _Judged:
    """One record after everything that can be said of it alone; `reason` '' is a good event."""

    reason: str
    fields: frozenset[str] = frozenset()
    name: str | None = None
    service: str | None = None
    values: dict[str, Value] = field(default_factory=dict)
    edge_ids: dict[str, str] = field(default_factory=dict)  # kind of subject -> edge id
    claimed_ms: int | None = None
    occurred_ms: int = 0
    record: LogRecord | None = None
    raw: bytes | None = None


@dataclass(frozen=True)
class _Stored:
    event_id: EventId
    name: str
    claimed_ms: int
    day: int


@dataclass
class Oracle:
    """Judges slice after slice, and remembers what is stored."""

    policy: Policy
    pseudonym_key: Key
    erased: frozenset[tuple[str, str]] = frozenset()  # (kind of subject, edge id)
    withdrawn: frozenset[tuple[str, str]] = frozenset()
    _stored: list[_Stored] = field(default_factory=list)

    def forget(self) -> None:
        """The warehouse was emptied."""
        self._stored.clear()

    def judge(self, lines: Sequence[Line], slice_time_ms: int) -> Expected:
        expected = Expected()
        judged = [item for line in lines for item in self._judge_line(line, slice_time_ms)]
        for item in judged:
            if item.reason == "":
                continue
            (expected.dropped if item.reason in DROPPED else expected.rejected)[item.reason] += 1
        self._find_repeated(judged, expected)
        expected.received = len(judged)
        return expected

    # -- one line, one record ------------------------------------------------------------------

    def _judge_line(self, line: Line, slice_time_ms: int) -> Iterator[_Judged]:
        if isinstance(line, NoRecords):
            yield _Judged(line.reason, raw=line.raw)
            return
        found = False
        for in_resource in line.resource_logs:
            resource = first_values(in_resource.resource.attributes if in_resource.resource else [])
            service = resource["service.name"].text if "service.name" in resource else None
            for in_scope in in_resource.scope_logs:
                for record in in_scope.log_records:
                    found = True
                    yield self._judge_record(record, service or None, slice_time_ms)
        if not found:
            yield _Judged("not_logs")

    def _judge_record(self, record: LogRecord, service: str | None, slice_time_ms: int) -> _Judged:
        values = first_values(record.attributes)
        claimed_ms, occurred_ms = _times(record, slice_time_ms)
        name = _name(record, values)
        edge_ids = self._edge_ids(values)
        reason, fields = self._reason(name, values, edge_ids, occurred_ms, slice_time_ms)
        return _Judged(
            reason, fields, name, service, values, edge_ids, claimed_ms, occurred_ms, record
        )

    def _reason(
        self,
        name: str | None,
        values: dict[str, Value],
        edge_ids: dict[str, str],
        occurred_ms: int,
        slice_time_ms: int,
    ) -> tuple[str, frozenset[str]]:
        """The first reason that applies, and the attributes that it may blame."""
        nobody: frozenset[str] = frozenset()
        if name == "":
            return "not_an_event", nobody
        consent = values.get("consent.analytics")
        if consent is None and self.policy.drops_absent_consent:
            return "consent_absent", nobody
        if consent is not None and consent.text != "granted":
            return "consent_denied", nobody
        if self.erased & edge_ids.items():
            return "erased", nobody
        if self.withdrawn & edge_ids.items():
            return "consent_withdrawn", nobody
        if name is None or name not in self.policy.events:
            return "unknown_event", nobody
        if occurred_ms < slice_time_ms - (self.policy.raw_days - 1) * DAY_MS:
            return "expired", nobody
        if raw := self._raw_identifiers(values):
            return "raw_identifier", raw
        levels = self.policy.events[name]
        invalid = {key for key in values if key in levels and not self._is_valid(key, values[key])}
        if invalid:
            return "invalid_attribute", frozenset(invalid)
        required = {key for key, level in levels.items() if level == "required"}
        missing = frozenset(required - values.keys())
        return ("missing_attribute", missing) if missing else ("", nobody)

    def _edge_ids(self, values: dict[str, Value]) -> dict[str, str]:
        found = {}
        for column, kind in SUBJECTS.items():
            value = self._column_value(column, values)
            if value is not None and EDGE_ID.fullmatch(value.text or ""):
                found[kind] = value.text or ""
        return found

    def _column_value(self, column: str, values: dict[str, Value]) -> Value | None:
        return next((values[key] for key in self.policy.keys_of(column) if key in values), None)

    def _raw_identifiers(self, values: dict[str, Value]) -> frozenset[str]:
        return frozenset(
            key
            for key, value in values.items()
            if self.policy.annotation(key, "pii") == "pseudonymise"
            and not EDGE_ID.fullmatch(value.text or "")
        )

    def _is_valid(self, key: str, value: Value) -> bool:
        attribute = self.policy.attributes[key]
        limits = attribute["annotations"]
        if limits["pii"] != "none" or limits.get("column") == "consent":
            return True  # ids and consent have judgements of their own; the rest is never stored
        if isinstance(attribute["type"], dict):
            return value.text in [member["value"] for member in attribute["type"]["members"]]
        wanted = KIND_OF_TYPE[attribute["type"]]
        if value.kind != wanted and (value.kind, wanted) != ("int", "double"):
            return False
        if wanted == "string":
            return len(value.value) <= limits.get("max_length", 256) and (
                "pattern" not in limits
                or re.fullmatch(limits["pattern"], value.value, re.ASCII) is not None
            )
        if wanted == "bool":
            return True
        return math.isfinite(value.value) and (
            limits.get("minimum", -math.inf) <= value.value <= limits.get("maximum", math.inf)
        )

    # -- the records of a slice against each other and against what is stored ------------------

    def _find_repeated(self, judged: list[_Judged], expected: Expected) -> None:
        days = {item.occurred_ms // DAY_MS for item in judged if item.reason == ""}
        near = {day + offset for day in days for offset in (-1, 0, 1)}
        known = [stored for stored in self._stored if stored.day in near]
        for item in judged:
            if item.reason in DROPPED:
                continue
            if item.reason != "":
                expected.letters.append(self._letter(item, item.reason))
                continue
            row = self._row(item)
            seen = [stored for stored in known if stored.event_id == row.event_id]
            if any(self._is_same(stored, item) for stored in seen):
                expected.duplicates += 1
            elif seen:
                expected.rejected["event_id_conflict"] += 1
                expected.letters.append(self._letter(item, "event_id_conflict"))
            else:
                expected.rows.append(row)
                expected.unknown_attributes += self._unknown(item)
                # Stored without any time, it has the time at which it was stored.
                known.append(_Stored(row.event_id, str(item.name), item.claimed_ms or 0, 0))
                self._stored.append(
                    _Stored(
                        row.event_id,
                        str(item.name),
                        item.occurred_ms if item.claimed_ms is None else item.claimed_ms,
                        item.occurred_ms // DAY_MS,
                    )
                )

    def _is_same(self, stored: _Stored, item: _Judged) -> bool:
        """An event without any time has none to compare."""
        return stored.name == item.name and item.claimed_ms in (None, stored.claimed_ms)

    def _unknown(self, item: _Judged) -> int:
        own = self.policy.events[str(item.name)]
        return len(item.values.keys() - own.keys() - set(NAME_KEYS))

    # -- what is stored ------------------------------------------------------------------------

    def pseudonym(self, kind: str, edge_id: str) -> int:
        """HMAC-SHA256 under a sub-key of the kind, the first 8 bytes, little endian."""
        sub_key = hmac.new(self.pseudonym_key.secret, kind.encode(), hashlib.sha256).hexdigest()
        digest = hmac.new(sub_key.encode(), edge_id.encode(), hashlib.sha256).digest()
        return int.from_bytes(digest[:8], "little")

    def _pseudonyms(self, item: _Judged, absent: int | None) -> dict[str, int | None]:
        return {
            column: self.pseudonym(kind, item.edge_ids[kind]) if kind in item.edge_ids else absent
            for column, kind in SUBJECTS.items()
        }

    def _row(self, item: _Judged) -> Row:
        name = str(item.name)
        own = self.policy.events[name]
        payload = {
            self.policy.annotation(key, "payload_key"): value.value
            for key, value in item.values.items()
            if key in own and self.policy.annotation(key, "payload_key")
        }
        route = self._column_value("route_pattern", item.values)
        version = self._column_value("schema_version", item.values)
        is_corrected = item.claimed_ms is not None and item.claimed_ms != item.occurred_ms
        columns = self._pseudonyms(item, absent=None) | {
            "name": name,
            "schema_version": version.value if version else self.policy.versions[name],
            "route_pattern": route.value if route else None,
            "occurred_ms": item.occurred_ms,
            "claimed_ms": item.claimed_ms if is_corrected else None,
            "source": item.service,
        }
        return Row(self._event_id(item, route, payload), columns, payload)

    def _event_id(self, item: _Judged, route: Value | None, payload: dict[str, Any]) -> EventId:
        value = self._column_value("event_id", item.values)
        text = value.value if value else ""
        if UUID_TEXT.fullmatch(text) and uuid.UUID(text).int:
            return uuid.UUID(text)
        if text:
            return Hashed(("id", text))
        ids = tuple(sorted(item.edge_ids.items()))
        parts = tuple((key, number_text(part)) for key, part in payload.items())
        return Hashed((item.service, item.name, item.claimed_ms, ids, route, parts))

    def _letter(self, item: _Judged, reason: str) -> Letter:
        if item.record is None:
            return Letter(reason, frozenset(), {}, raw=item.raw)
        return Letter(
            reason,
            item.fields,
            self._pseudonyms(item, absent=0)
            | {
                "event_name": item.name if item.name in self.policy.events else "",
                "occurred_ms": item.occurred_ms,
            },
            record={
                "service": item.service or "",
                "name": item.name,
                "time": item.record.time_unix_nano,
                "observed": item.record.observed_time_unix_nano,
                # Duplicates stay: what is replayed must be judged as it was.
                "attributes": [
                    (entry.key, entry.value.to_dict())
                    for entry in item.record.attributes
                    if entry.key
                    and entry.value is not None
                    and value_of(entry.value) is not None
                    and self.policy.annotation(entry.key, "pii") != "drop"
                ],
            },
        )


def _name(record: LogRecord, values: dict[str, Value]) -> str | None:
    """'' where there is no name, None where it is no text."""
    if record.event_name:
        return record.event_name
    named = next((values[key] for key in NAME_KEYS if key in values), None)
    if named is None or named.value == b"":
        return ""
    return named.text


def _times(record: LogRecord, slice_time_ms: int) -> tuple[int | None, int]:
    """(the time the record claims, the time it counts at), in ms."""
    claimed_ns = record.time_unix_nano or record.observed_time_unix_nano
    if not claimed_ns:
        return None, slice_time_ms
    claimed_ms = min(claimed_ns // 1_000_000, END_OF_2299_MS)
    latest = slice_time_ms + CLOCK_TOLERANCE_MS
    if claimed_ms <= latest:
        return claimed_ms, claimed_ms
    observed_ms = (record.observed_time_unix_nano or 0) // 1_000_000
    return claimed_ms, observed_ms if 0 < observed_ms <= latest else slice_time_ms


def number_text(value: Any) -> str:
    """Equal for numbers that print alike, however they were typed."""
    if isinstance(value, float) and value.is_integer() and math.copysign(1, value) > 0:
        return repr(int(value))
    return repr(value)
