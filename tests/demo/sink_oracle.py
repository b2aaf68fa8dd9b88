"""A slow, independent judge of a sink: reads its files and the catalogue's YAML, and counts."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

CATALOG = Path(__file__).parents[2] / "catalog"
ID_KEYS = ("organisation.id", "enduser.pseudo.id", "user.id", "session.id")
EDGE_ID = re.compile(r"e[a-z0-9]{1,16}_[0-9a-f]{64}")
KINDS = {
    "string": "stringValue",
    "int": "intValue",
    "double": "doubleValue",
    "boolean": "boolValue",
}
RAW_DAYS = 180


@dataclass
class Verdicts:
    """Counts per outcome, and the records that were accepted, in sink order."""

    emitted: int = 0
    duplicates: int = 0
    unknown_attributes: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    accepted: list["Record"] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """One log record: `values` are Python values, `kinds` the OTLP kinds they came as."""

    service: str
    name: str | None
    time_ns: int
    observed_ns: int
    values: dict[str, Any]
    kinds: dict[str, str]

    @property
    def event_id(self) -> str:
        return str(self.values["event.id"])


class Catalogue:
    """The YAML files as dictionaries; no code of the product reads them here."""

    def __init__(self) -> None:
        self.attributes: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, list[dict[str, Any]]] = {}
        self.events: dict[str, dict[str, Any]] = {}
        for file in sorted(CATALOG.rglob("*.yaml")):
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
            for item in document.get("attributes", []):
                self.attributes[item["key"]] = item
            for item in document.get("attribute_groups", []):
                self.groups[item["id"]] = item["attributes"]
            for item in document.get("events", []):
                self.events[item["name"]] = item

    def references(self, event: str) -> dict[str, str]:
        """Attribute key -> requirement level, for one event."""
        levels: dict[str, str] = {}
        for item in self.events[event]["attributes"]:
            for reference in self.groups[item["ref_group"]] if "ref_group" in item else [item]:
                levels[reference["ref"]] = reference["requirement_level"]
        return levels

    def problem(self, record: Record) -> str:
        """The reason to reject an event for its attributes, or ''."""
        levels = self.references(str(record.name))
        for key in record.values.keys() & levels.keys():
            if not self.is_valid(key, record.values[key], record.kinds[key]):
                return "invalid_attribute"
        required = {key for key, level in levels.items() if level == "required"}
        return "missing_attribute" if required - record.values.keys() else ""

    def is_valid(self, key: str, value: Any, kind: str) -> bool:
        attribute = self.attributes[key]
        limits = attribute["annotations"]
        if isinstance(attribute["type"], dict):
            members = [member["value"] for member in attribute["type"]["members"]]
            return kind == "stringValue" and value in members
        if kind != KINDS[attribute["type"]]:
            return False
        if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
            return False
        if isinstance(value, str):
            return len(value) <= int(limits.get("max_length", 256))
        return bool(limits.get("minimum", value) <= value <= limits.get("maximum", value))


def lines_of(sink: Path) -> list[bytes]:
    """All lines in the order in which they were written, without the empty ones."""
    rotated = sorted(path for path in sink.iterdir() if path.name != "events.jsonl")
    files = [*rotated, sink / "events.jsonl"]
    return [line for file in files for line in file.read_bytes().split(b"\n") if line]


def judge(sink: Path, now: datetime, catalogue: Catalogue) -> Verdicts:
    """Judge everything in the sink by the published order; the first reason counts."""
    verdicts = Verdicts()
    seen: dict[str, tuple[str | None, int]] = {}
    for line in lines_of(sink):
        records = records_of(line)
        if isinstance(records, str):
            verdicts.emitted += 1
            verdicts.rejected[records] += 1
            continue
        for record in records:
            verdicts.emitted += 1
            _judge_record(record, now, catalogue, seen, verdicts)
    return verdicts


def records_of(line: bytes) -> list[Record] | str:
    """The log records of a line, or the reason why there are none."""
    try:
        document = json.loads(line)
    except ValueError:
        return "undecodable"
    if "resourceLogs" not in document:
        return "not_logs"
    return [
        _record(in_resource, log_record)
        for in_resource in document["resourceLogs"]
        for in_scope in in_resource["scopeLogs"]
        for log_record in in_scope["logRecords"]
    ]


def _record(in_resource: dict[str, Any], log_record: dict[str, Any]) -> Record:
    resource = {
        item["key"]: item["value"]["stringValue"] for item in in_resource["resource"]["attributes"]
    }
    kinds = {item["key"]: next(iter(item["value"])) for item in log_record["attributes"]}
    values = {item["key"]: next(iter(item["value"].values())) for item in log_record["attributes"]}
    assert len(values) == len(log_record["attributes"]), "an attribute came twice"
    return Record(
        service=resource["service.name"],
        name=log_record.get("eventName"),
        time_ns=int(log_record["timeUnixNano"]),
        observed_ns=int(log_record["observedTimeUnixNano"]),
        values={
            key: int(value) if kinds[key] == "intValue" else value for key, value in values.items()
        },
        kinds=kinds,
    )


def _judge_record(
    record: Record,
    now: datetime,
    catalogue: Catalogue,
    seen: dict[str, tuple[str | None, int]],
    verdicts: Verdicts,
) -> None:
    if reason := _reason_to_drop_unseen(record):
        verdicts.dropped[reason] += 1
        return
    if record.name not in catalogue.events:
        verdicts.rejected["unknown_event"] += 1
        return
    oldest_ns = (now - timedelta(days=RAW_DAYS - 1)).timestamp() * 1e9
    if record.time_ns < oldest_ns:
        verdicts.dropped["expired"] += 1
        return
    ids = [str(record.values[key]) for key in ID_KEYS if key in record.values]
    if not all(EDGE_ID.fullmatch(text) for text in ids):
        verdicts.rejected["raw_identifier"] += 1
        return
    if reason := catalogue.problem(record):
        verdicts.rejected[reason] += 1
        return
    identity = (record.name, record.time_ns)
    first = seen.get(record.event_id)
    if first is None:
        seen[record.event_id] = identity
        verdicts.accepted.append(record)
        verdicts.unknown_attributes += len(record.values.keys() - catalogue.attributes.keys())
    elif first == identity:
        verdicts.duplicates += 1
    else:
        verdicts.rejected["event_id_conflict"] += 1


def _reason_to_drop_unseen(record: Record) -> str:
    if record.name is None:
        return "not_an_event"
    consent = record.values.get("consent.analytics")
    if consent is None:
        return "consent_absent"
    return "" if consent == "granted" else "consent_denied"
