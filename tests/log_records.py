"""OTLP/JSON as tests write it, sources that live in memory, and what came of a slice."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.catalog.publish import publish_policy
from telemetry_pipeline.catalog.reader import read_catalog
from telemetry_pipeline.config import load_config
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.ingest.loader import Loader, LoaderKeys
from telemetry_pipeline.ingest.statements import Contract, compile_contract
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.base import Encoding, Loss, Positions, Slice, SliceData, Source

MS = 1_000_000
DAY_MS = 86_400_000

Value = Any
Attributes = Mapping[str, Value]


def edge(kind: str, number: object) -> str:
    """An edge id: the same for the same arguments."""
    return f"e1_{hashlib.sha256(f'{kind}:{number}'.encode()).hexdigest()}"


def any_value(value: Value) -> dict[str, Any]:
    """An AnyValue of OTLP/JSON; a dict is taken as one that is written out already."""
    match value:
        case dict():
            return value
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"stringValue": value}


def as_attributes(pairs: Attributes | list[tuple[str, Value]]) -> list[dict[str, Any]]:
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return [{"key": key, "value": any_value(value)} for key, value in items]


def common(user: object = 1, **more: Value) -> dict[str, Value]:
    """What every good event of the tests carries; None leaves an attribute out."""
    attributes: dict[str, Value] = {
        "event.id": str(uuid.uuid4()),
        "consent.analytics": "granted",
        "organisation.id": edge("organisation", 1),
        "enduser.pseudo.id": edge("user", user),
        "session.id": edge("session", user),
    }
    for key, value in more.items():
        attributes[key.replace("__", ".")] = value
    return {key: value for key, value in attributes.items() if value is not None}


def record(
    name: str | None,
    attributes: Attributes | list[tuple[str, Value]],
    time_ms: int | None,
    observed_ms: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A log record; None leaves a field out."""
    built: dict[str, Any] = {}
    if time_ms is not None:
        built["timeUnixNano"] = str(time_ms * MS)
    if observed_ms is not None:
        built["observedTimeUnixNano"] = str(observed_ms * MS)
    if name is not None:
        built["eventName"] = name
    return built | {"attributes": as_attributes(attributes)} | more


def line(*records: Any, service: Value = "web") -> bytes:
    """One line with the records of one resource."""
    resource = {"attributes": as_attributes({"service.name": service})} if service else {}
    document = {
        "resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": list(records)}]}]
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


@dataclass
class MemorySource:
    """One slice for each name in `slices`; deleting or changing one is a file that did so."""

    slices: dict[str, bytes] = field(default_factory=dict)
    name: str = "memory"
    encoding: Encoding = "otlp_json"
    hashes_on_read: bool = False
    unit: str = "bytes"

    def waiting(self, positions: Positions) -> int:
        return sum(len(cut.data) for cut in self.read_new(positions))

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        for partition, data in list(self.slices.items()):
            if (partition, 0) not in positions:
                yield self.cut(partition, data)

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        return self.slices.get(wanted.partition)

    def losses(self, positions: Positions) -> list[Loss]:
        return []

    def reach(self, positions: Positions) -> Mapping[tuple[str, int], int]:
        return {}

    def acknowledge(self, settled: Slice, rejected: Mapping[str, int]) -> None:
        pass

    def close(self) -> None:
        pass

    def cut(self, partition: str, data: bytes | None = None) -> SliceData:
        data = self.slices[partition] if data is None else data
        wanted = Slice(self.name, partition, 0, 0, len(data))
        return SliceData(wanted, data, hashlib.sha256(data[-4096:]).hexdigest())


def make_contract(project: Project) -> Contract:
    return compile_contract(read_catalog(project.catalog_dir), load_config(project.config_file))


def make_loader(
    client: Client,
    project: Project,
    source: Source,
    *,
    contract: Contract | None = None,
    run_id: str = "test",
) -> Loader:
    """A loader as ingest() makes it; `client` needs a session of its own."""
    config = load_config(project.config_file)
    publish_policy(client, config, read_catalog(project.catalog_dir))
    return Loader(
        client=client,
        source=source,
        contract=contract or make_contract(project),
        keys=LoaderKeys(
            pseudonym=read_key("pseudonym", project.keys_dir),
            event=read_key("event", project.keys_dir),
            dead_letter=read_key("dead_letter", project.keys_dir),
        ),
        run_id=run_id,
        timezone=config.reporting.timezone,
    )


@dataclass(frozen=True)
class Outcome:
    """What the ledger says of one slice, and the rows it left."""

    received: int
    accepted: int
    duplicates: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    unknown_attributes: int
    events: list[dict[str, Any]]
    letters: list[dict[str, Any]]

    def of_line(self, number: int) -> Outcome:
        """The same with the rows of one line only."""
        return replace(
            self,
            events=[row for row in self.events if row["source_position"] >> 24 == number],
            letters=[row for row in self.letters if row["source_position"] >> 24 == number],
        )

    @property
    def verdict(self) -> str:
        """What became of the one record: its row, its dead letter, or the one reason to drop."""
        if self.events:
            return "accepted"
        if self.letters:
            return str(self.letters[0]["reason"])
        (verdict,) = self.dropped or {"duplicate": self.duplicates}
        return verdict

    @property
    def event(self) -> dict[str, Any]:
        (event,) = self.events
        return event

    @property
    def payload(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.event["payload_json"])
        return loaded


def outcomes(client: Client) -> dict[str, Outcome]:
    """Every slice with a result, by its partition."""
    results = client.query("SELECT * FROM ops.slice_results").named_results()
    events = list(client.query("SELECT * FROM raw.product_telemetry_events").named_results())
    letters = list(client.query("SELECT * FROM raw.dead_letters").named_results())
    return {
        row["partition"]: Outcome(
            received=row["received"],
            accepted=row["accepted"],
            duplicates=row["duplicates"],
            rejected=row["rejected"],
            dropped=row["dropped"],
            unknown_attributes=row["unknown_attributes"],
            events=[event for event in events if event["batch_id"] == row["batch_id"]],
            letters=[letter for letter in letters if letter["batch_id"] == row["batch_id"]],
        )
        for row in results
    }
