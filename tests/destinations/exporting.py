"""What the tests of the exports share: events to land, a receiver to ask, one way to export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import clickhouse_connect
import httpx
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.demo.amplitude_server import (
    API_PATH,
)
from telemetry_pipeline.destinations.amplitude import Amplitude, AmplitudeSettings
from telemetry_pipeline.destinations.base import Destination
from telemetry_pipeline.destinations.export import (
    ExportPolicy,
    ExportReport,
    export_once,
)
from telemetry_pipeline.warehouse.client import Address

EMPTIED = (
    "raw.product_telemetry_events_storage",
    "ops.slice_results",
    "ops.touches",
    "ops.slice_counts",
    "ops.export_outbox",
    "ops.export_marks",
    "privacy.destination_ids",
    "privacy.consent_withdrawals",
    "privacy.erasure_tombstones",
)
API_KEY = "key-of-the-local-amplitude"
INSERT_KEY = bytes(range(32))
NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=2)


@dataclass(frozen=True)
class Event:
    """An accepted event as ingest would land it; 0 is an absent subject."""

    name: str = "change_request.created"
    user: int = 0
    organisation: int = 0
    session: int = 0
    route_pattern: str = ""
    payload: dict[str, object] = field(default_factory=dict)
    occurred_at: datetime = NOON
    event_id: UUID = field(default_factory=uuid4)


class Warehouse:
    """The engine, with what ingest does to it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def empty(self) -> None:
        """Remove what an earlier test left."""
        filled = self.rows(
            "SELECT database || '.' || name FROM system.tables "
            "WHERE database IN ('raw', 'ops', 'privacy') AND total_rows > 0"
        )
        for (table,) in filled:
            if table in EMPTIED:
                self.client.command(f"TRUNCATE TABLE {table}")

    def land(self, events: Sequence[Event], *, batch_id: int = 1, settle: bool = True) -> None:
        """Insert accepted events as one batch through the landing table, and end the batch."""
        now = datetime.now(UTC)
        columns = (
            *("batch_id", "attempt", "source_name", "source_partition", "source_position"),
            *("verdict", "org_id_hash", "event_id", "name", "schema_version", "session_id"),
            *("anonymous_user_id", "route_pattern", "payload_json", "occurred_at"),
            *("reporting_day", "ingested_at", "source", "pseudonym_key_id", "precedence"),
        )
        rows = [
            [
                *(batch_id, 1, "app_events", "events.jsonl", position, "accepted"),
                *(event.organisation, event.event_id, event.name, "2026-05-telemetry-v1"),
                *(event.session, event.user, event.route_pattern, json.dumps(event.payload)),
                *(event.occurred_at, event.occurred_at.date(), now, "app", "k1"),
                2**64 - 1 - batch_id,
            ]
            for position, event in enumerate(events)
        ]
        self.client.insert("raw.landing", rows, column_names=columns)
        if settle:
            self.settle(batch_id, len(events))

    def settle(self, batch_id: int, accepted: int) -> None:
        """Write the batch's result: from here on it may be exported."""
        self.client.insert(
            "ops.slice_results",
            [["app_events", "events.jsonl", batch_id, 1, accepted, accepted, datetime.now(UTC)]],
            column_names=(
                *("source", "partition", "batch_id", "attempt"),
                *("received", "accepted", "finished_at"),
            ),
        )

    def touch(self, day: datetime, *, batch_id: int) -> None:
        """What a heal of the batch leaves behind."""
        self.client.insert(
            "ops.touches",
            [[day.date(), batch_id, 2, "settled", datetime.now(UTC)]],
            column_names=("day", "batch_id", "attempt", "kind", "touched_at"),
        )

    def withdraw(self, kind: str, subject: int) -> None:
        self.client.insert(
            "privacy.consent_withdrawals", [[kind, subject, datetime.now(UTC), "test"]]
        )

    def erase(self, kind: str, subject: int) -> None:
        self.client.insert("privacy.erasure_tombstones", [[kind, subject, 1, datetime.now(UTC)]])

    def states(self) -> dict[str, int]:
        """Outbox states to numbers of events."""
        rows = self.client.query(
            "SELECT toString(state), count() FROM ops.export_outbox FINAL GROUP BY state"
        ).result_rows
        return {row[0]: row[1] for row in rows}

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return [tuple(row) for row in self.client.query(sql).result_rows]


def connect(address: Address) -> Client:
    return clickhouse_connect.get_client(
        interface=address.scheme,
        host=address.host,
        port=address.port,
        username=address.user,
        password=address.password,
        autogenerate_session_id=False,
        settings={"async_insert": 0},
    )


class Receiver:
    """A local Amplitude server and what it says it received."""

    def __init__(self, url: str) -> None:
        self.endpoint = url + API_PATH
        self._http = httpx.Client(base_url=url)

    def close(self) -> None:
        self._http.close()

    def summary(self) -> dict[str, int]:
        answer: dict[str, int] = self._http.get("/received/summary").json()
        return answer

    def events(self) -> list[dict[str, object]]:
        """What it stored, oldest first."""
        found: list[dict[str, object]] = self._http.get("/received?limit=100000").json()
        return found[::-1]


PATIENT = ExportPolicy(max_seconds=20, throttle_pause=1.2, first_backoff=0.01, longest_backoff=0.05)


def export(
    warehouse: Warehouse,
    receiver: Receiver,
    *,
    globs: Sequence[str] = ("change_request.*",),
    policy: ExportPolicy = PATIENT,
    **settings: object,
) -> ExportReport:
    """One run against the local server, without limits of its own unless `settings` says so."""
    defaults: dict[str, object] = {
        "api_key": API_KEY,
        "endpoint": receiver.endpoint,
        "events_per_second": None,
        "device_events_per_second": None,
        "timeout_seconds": 5.0,
    }
    with Amplitude(AmplitudeSettings(**(defaults | settings))) as amplitude:  # type: ignore[arg-type]
        return export_through(warehouse, amplitude, globs=globs, policy=policy)


def export_through(
    warehouse: Warehouse,
    destination: Destination,
    *,
    globs: Sequence[str] = ("change_request.*",),
    policy: ExportPolicy = PATIENT,
) -> ExportReport:
    return export_once(
        warehouse.client,
        destination,
        name="amplitude",
        globs=globs,
        insert_key=INSERT_KEY,
        policy=policy,
    )
