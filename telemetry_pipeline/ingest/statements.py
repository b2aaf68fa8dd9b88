"""The statements that ingest runs, made from the templates in statements/ and the contract."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources

from telemetry_pipeline.catalog.model import Catalog
from telemetry_pipeline.catalog.sql import catalog_fragments, quote, string_array
from telemetry_pipeline.config import Config, as_policy
from telemetry_pipeline.ingest.reasons import DROPPED, REJECTED

DAY_MS = 86_400_000
CLOCK_TOLERANCE_MS = 5 * 60 * 1000

#: Reasons found before anything about the person may be looked at.
_EARLY = ("undecodable", "not_logs", "not_an_event", "consent_absent", "consent_denied")
#: Reasons the staging statement finds for which the record goes to the dead letters.
_STAGED_REJECTIONS = ("unknown_event", "raw_identifier", "invalid_attribute", "missing_attribute")

#: Every kind as text: a value of another type than its key says is then seen, and not taken for
#: an absent one.
_ANY_VALUE = (
    "Tuple(stringValue Nullable(String), intValue Nullable(String), doubleValue Nullable(String), "
    "boolValue Nullable(String), arrayValue Nullable(String), kvlistValue Nullable(String), "
    "bytesValue Nullable(String))"
)
_ATTRIBUTES = f"Array(Tuple(key String, value {_ANY_VALUE}))"
_RECORD = (
    # `body` is read nowhere: it tells a log record that has nothing else from no log record.
    "Tuple(timeUnixNano String, observedTimeUnixNano String, eventName String, body String, "
    f"attributes {_ATTRIBUTES})"
)
_RESOURCE_ATTRIBUTES = "Array(Tuple(key String, value Tuple(stringValue Nullable(String))))"
_RESOURCE_LOGS = (
    f"Array(Tuple(resource Tuple(attributes {_RESOURCE_ATTRIBUTES}), "
    f"scopeLogs Array(Tuple(logRecords Array({_RECORD})))))"
)
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Contract:
    """Catalogue and policy, compiled: what a slice is judged by.

    `contract_hash` names the policy (kept in ops.contracts), `statement_hash` the SQL made of it.
    """

    contract_json: str
    stage_template: str
    land_sql: str
    create_stage_sql: str

    @property
    def contract_hash(self) -> str:
        return _sha256(self.contract_json)

    @property
    def statement_hash(self) -> str:
        return _sha256(self.stage_template + self.land_sql)

    def stage_sql(self, slice_time_ms: int) -> str:
        """The parsing statement for a slice with this time; data follows it in the same body."""
        return self.stage_template.replace("{{slice_time_ms}}", str(slice_time_ms))


def compile_contract(catalog: Catalog, config: Config) -> Contract:
    """Compile the statements. Pure: the same catalogue and policy give the same text."""
    drops_absent = config.consent.absent == "drop"
    fragments = catalog_fragments(catalog) | {
        "slice_time_ms": "{{slice_time_ms}}",
        "resource_logs_type": _RESOURCE_LOGS,
        "record_type": _RECORD,
        "clock_tolerance_ms": str(CLOCK_TOLERANCE_MS),
        # One day less than the TTL: a row at its very end could vanish while it is inserted.
        "retention_ms": str((config.retention.raw_days - 1) * DAY_MS),
        "absent_consent_reason": quote("consent_absent" if drops_absent else ""),
        "rejecting_reasons": _list(_STAGED_REJECTIONS),
        "early_reasons": _list(_EARLY),
        "dropped_reasons": _list(tuple(DROPPED)),
        "timezone": quote(config.reporting.timezone),
    }
    return Contract(
        contract_json=json.dumps(
            {"catalog": _catalog_policy(catalog), "policy": as_policy(config)}, sort_keys=True
        ),
        stage_template=_fill(_template("stage.sql"), fragments),
        land_sql=_fill(_template("land.sql"), fragments),
        create_stage_sql=_template("create_stage.sql"),
    )


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


def _template(name: str) -> str:
    file = resources.files("telemetry_pipeline.ingest") / "statements" / name
    return file.read_text(encoding="utf-8")


def _fill(template: str, fragments: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: fragments[found[1]], template)


def _list(values: tuple[str, ...]) -> str:
    return string_array(values).strip("[]")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
