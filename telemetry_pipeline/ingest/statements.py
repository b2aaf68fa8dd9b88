"""The statements that ingest runs, made from the templates in statements/ and the contract."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from telemetry_pipeline.catalog.model import Catalog, Column
from telemetry_pipeline.catalog.sql import catalog_fragments, quote, string_array
from telemetry_pipeline.config import Config, as_policy
from telemetry_pipeline.identity.edge import IdKind
from telemetry_pipeline.ingest.reasons import DROPPED, REJECTED
from telemetry_pipeline.ingest.shapes import COLUMNS, PAYLOAD_MARK, ShapeJudge
from telemetry_pipeline.sources.base import Encoding

DAY_MS = 86_400_000
CLOCK_TOLERANCE_MS = 5 * 60 * 1000

_ATTRIBUTES_JSON = "Array(Tuple(key String, value Map(String, Nullable(String))))"
#: `body` is read nowhere: it tells a log record that has nothing else from no log record.
_RESOURCE_LOGS = (
    f"Array(Tuple(resource Tuple(attributes {_ATTRIBUTES_JSON}), scopeLogs Array(Tuple(logRecords "
    "Array(Tuple(timeUnixNano UInt64, observedTimeUnixNano UInt64, eventName String, body String, "
    f"attributes {_ATTRIBUTES_JSON}))))))"
)
_ATTRIBUTES_PROTO = (
    "Array(Tuple(key String, value Tuple(stringValue Nullable(String), intValue Nullable(String), "
    "doubleValue Nullable(String), boolValue Nullable(String), arrayValue Nullable(String), "
    "kvlistValue Nullable(String), bytesValue Nullable(String))))"
)
_REQUEST = (
    f"resourceLogs Array(Tuple(resource Tuple(attributes {_ATTRIBUTES_PROTO}), scopeLogs "
    "Array(Tuple(logRecords Array(Tuple(timeUnixNano UInt64, observedTimeUnixNano UInt64, "
    f"eventName String, attributes {_ATTRIBUTES_PROTO}))))))"
)
_BATCH = (
    "Tuple(schemaVersion Nullable(String), source String, sentAt String, "
    "sessionId Nullable(String), anonymousUserId Nullable(String), events Array(Tuple("
    "eventId Nullable(String), name String, occurredAt String, routePattern Nullable(String), "
    "payload String)))"
)
#: The columns that a batch's fields fill, in the order of records_product_telemetry_batch.sql.
_BATCH_COLUMNS: tuple[Column, ...] = (
    "event_id",
    "schema_version",
    "consent",
    "org_id_hash",
    "anonymous_user_id",
    "session_id",
    "route_pattern",
)
_FORMATS: dict[Encoding, str] = {
    "otlp_json": "LineAsString",
    "otlp_proto": "Protobuf",
    "product_telemetry_batch": "LineAsString",
}
#: Id columns of judge.sql -> the kind of their edge ids.
_ID_KINDS: dict[str, IdKind] = {"org": "organisation", "user": "user", "session": "session"}
_KIND_OF_COLUMN: dict[Column, IdKind] = {
    "org_id_hash": "organisation",
    "anonymous_user_id": "user",
    "session_id": "session",
}
#: What emitters write where there is nobody; as an id it would make one person of many.
PLACEHOLDER_IDS = (
    *("", "0", "-1", "anonymous", "guest", "n/a", "nil", "none", "null", "undefined", "unknown"),
    "00000000-0000-0000-0000-000000000000",
)
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Numbering:
    """Where the lines of a parse stand in their slice: SQL over the line's number in the body."""

    line_number: str = "line_number"
    first_record: str = "0"


@dataclass(frozen=True)
class Contract:
    """Catalogue and policy, compiled: what a slice is judged by.

    `contract_hash` names the policy (kept in ops.contracts), `statement_hash` the SQL made of it.
    """

    contract_json: str
    shapes: ShapeJudge
    create_tables: tuple[str, ...]
    repeats_sql: str
    land_sql: str
    _judge_sql: Mapping[bool, str] = field(repr=False)
    _letters_sql: Mapping[bool, str] = field(repr=False)
    _parse_sql: Mapping[Encoding, str] = field(repr=False)

    @property
    def contract_hash(self) -> str:
        return _sha256(self.contract_json)

    @property
    def statement_hash(self) -> str:
        variants = (self._judge_sql, self._letters_sql, self._parse_sql)
        texts = [text for variant in variants for text in variant.values()]
        return _sha256("\n".join((self.repeats_sql, self.land_sql, *texts)))

    def judge_sql(self, *, hashes_on_read: bool) -> str:
        """The judging statement, for sources whose ids are edge ids or still have to be."""
        return self._judge_sql[hashes_on_read]

    def letters_sql(self, *, hashes_on_read: bool) -> str:
        """The statement that writes dead letters, for the same two kinds of sources."""
        return self._letters_sql[hashes_on_read]

    def parse_template(self, encoding: Encoding) -> str:
        """The parsing statement before a session's salt is in it."""
        return self._parse_sql[encoding]

    def parse_sql(self, encoding: Encoding, salt: Salt, numbering: Numbering | None = None) -> str:
        """The parsing statement; data in `encoding` follows it in the same body."""
        at = numbering or Numbering()
        return _fill(
            self._parse_sql[encoding],
            {
                "shape_key": f"toUInt64({salt.key[0]}), toUInt64({salt.key[1]})",
                "section": salt.section,
                "part": salt.part,
                "line_number": at.line_number,
                "first_record": at.first_record,
            },
        )


@dataclass(frozen=True)
class Salt:
    """What a loader's session draws at random, so that no emitter can make two shapes look alike:
    the texts between a shape's parts, and the key of its hash."""

    section: str
    part: str
    key: tuple[int, int]


def compile_contract(catalog: Catalog, config: Config) -> Contract:
    """Compile the statements. Pure: the same catalogue and policy give the same text."""
    fragments = _fragments(catalog, config)
    return Contract(
        contract_json=json.dumps(
            {"catalog": _catalog_policy(catalog), "policy": as_policy(config)}, sort_keys=True
        ),
        shapes=ShapeJudge(catalog),
        create_tables=tuple(_create_tables()),
        repeats_sql=statement("repeats.sql"),
        _letters_sql={
            hashes: _fill(statement("letters.sql"), fragments | _letter_identity(catalog, hashes))
            for hashes in (False, True)
        },
        land_sql=_fill(statement("land.sql"), fragments),
        _judge_sql={
            hashes: _fill(statement("judge.sql"), fragments | _identity(hashes))
            for hashes in (False, True)
        },
        _parse_sql={encoding: _parse_template(encoding, catalog) for encoding in _FORMATS},
    )


def _fragments(catalog: Catalog, config: Config) -> dict[str, str]:
    drops_absent = config.consent.absent == "drop"
    return catalog_fragments(catalog) | {
        "clock_tolerance_ms": str(CLOCK_TOLERANCE_MS),
        # One day less than the TTL: a row at its very end could vanish while it is inserted.
        "retention_ms": str((config.retention.raw_days - 1) * DAY_MS),
        "absent_consent_reason": quote("consent_absent" if drops_absent else ""),
        "dropped_reasons": _list(tuple(DROPPED)),
        "rejected_reasons": _list(tuple(REJECTED)),
        "timezone": quote(config.reporting.timezone),
    }


def _identity(hashes_on_read: bool) -> dict[str, str]:
    """How judge.sql comes to edge ids, and which it takes."""
    if not hashes_on_read:
        taken = {f"{column}_edge_id": f"{column}_text" for column in _ID_KINDS}
        return taken | {"absent_id": "0"}
    hashed = {
        f"{column}_edge_id": _edge_id(f"{column}_text", quote(kind))
        for column, kind in _ID_KINDS.items()
    }
    return hashed | {"absent_id": "1"}


def _letter_identity(catalog: Catalog, hashes_on_read: bool) -> dict[str, str]:
    """What letters.sql makes of an id: nothing of what is an edge id already, or has to be one."""
    kinds = {
        item.key: kind
        for column, kind in _KIND_OF_COLUMN.items()
        for item in catalog.for_column(column)
    }
    if not hashes_on_read or not kinds:
        return {"letter_keeps": "1", "letter_text": "text"}
    keys, names = string_array(kinds), string_array(kinds.values())
    hashed = _edge_id("text", f"transform(key, {keys}, {names}, '')")
    return {
        "letter_keeps": f"NOT (has({keys}, key) AND {_is_placeholder('text')})",
        "letter_text": f"if(has({keys}, key), {hashed}, text)",
    }


def _edge_id(text: str, kind: str) -> str:
    """SQL for identity/edge.py's edge_id(); an edge id stays one, and nobody is ''."""
    return (
        f"multiIf(match({text}, {{{{edge_id_pattern}}}}), {text}, {_is_placeholder(text)}, '', "
        "concat('e', {edge_key_id:String}, '_', lower(hex(HMAC('SHA256', "
        f"concat({kind}, ':', {text}), unhex({{secret_key_edge:String}}))))))"
    )


def _is_placeholder(text: str) -> str:
    return f"lower(trimBoth({text})) IN ({_list(PLACEHOLDER_IDS)})"


def _parse_template(encoding: Encoding, catalog: Catalog) -> str:
    settings = ""
    if encoding == "otlp_proto":
        schema = quote(statement("otlp_logs.proto"))
        settings = (
            f"SETTINGS format_schema_source = 'string', format_schema = {schema}, "
            "format_schema_message_name = 'ExportLogsServiceRequest'\n"
        )
    column_keys = [
        attributes[0].key if (attributes := catalog.for_column(column)) else ""
        for column in _BATCH_COLUMNS
    ]
    records = _fill(
        statement(f"records_{encoding}.sql").rstrip(),
        {
            "resource_logs_type": _RESOURCE_LOGS,
            "request_type": _REQUEST,
            "batch_type": _BATCH,
            "payload_mark": PAYLOAD_MARK,
            "column_keys": string_array(column_keys),
            "time_ns_of_occurred_at": _time_ns("event.occurredAt"),
            "time_ns_of_sent_at": _time_ns("sent_at"),
        },
    )
    return _fill(
        statement("parse.sql"),
        {"records": records, "settings": settings, "format": _FORMATS[encoding]},
    )


def _time_ns(text: str) -> str:
    """A time of a batch, ISO 8601 or milliseconds since 1970, in nanoseconds; 0 when unreadable."""
    return (
        f"if(match({text}, '^[0-9]{{10,13}}$'), toUInt64OrZero({text}), toUInt64(greatest(0, "
        f"toUnixTimestamp64Milli(parseDateTime64BestEffortOrZero({text}, 3, 'UTC'))))) * 1000000"
    )


def _create_tables() -> list[str]:
    columns = ",\n    ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    text = _fill(statement("create_tables.sql"), {"shape_columns": columns})
    return [part.strip() for part in text.split(";\n") if part.strip()]


def _catalog_policy(catalog: Catalog) -> dict[str, object]:
    return {
        "attributes": [
            {name: value for name, value in vars(item).items() if name != "brief"}
            for item in catalog.attributes
        ],
        "events": {
            event.name: {
                "class": event.event_class,
                "schema_version": event.schema_version,
                "attributes": {item.attribute.key: item.required for item in event.attributes},
            }
            for event in catalog.events
        },
        "reasons": [*DROPPED, *REJECTED],
    }


def statement(name: str) -> str:
    """The text of a file in statements/."""
    file = resources.files("telemetry_pipeline.ingest") / "statements" / name
    return file.read_text(encoding="utf-8")


def _fill(template: str, fragments: Mapping[str, str]) -> str:
    """Fill in what `fragments` holds; what is left is filled in later."""
    filled = _PLACEHOLDER.sub(lambda found: fragments.get(found[1], found[0]), template)
    if filled != template and _PLACEHOLDER.search(filled):
        # A fragment may be made of others.
        again = _PLACEHOLDER.sub(lambda found: fragments.get(found[1], found[0]), filled)
        return again if again == filled else _fill(again, fragments)
    return filled


def _list(values: tuple[str, ...]) -> str:
    return string_array(values).strip("[]")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
