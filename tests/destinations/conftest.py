"""A warehouse with events in it, and a local Amplitude server, for the tests of the exports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import clickhouse_connect
import pytest
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.warehouse.client import Address, parse_url
from telemetry_pipeline.warehouse.embedded import read_endpoint, read_users
from telemetry_pipeline.warehouse.migrate import migrate

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
            [["app_events", "events.jsonl", 1, batch_id, batch_id + 1, 1, batch_id, accepted,
              accepted, 0, {}, {}, 0, datetime.now(UTC)]],
        )  # fmt: skip

    def touch(self, day: datetime, *, batch_id: int) -> None:
        """What a heal of the batch leaves behind."""
        self.client.insert("ops.touches", [[day.date(), batch_id, 2, "settled", datetime.now(UTC)]])

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
        return dict(rows)

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


@pytest.fixture(scope="session")
def warehouse_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """CLICKHOUSE_URL where it is set, else an embedded warehouse of this test session."""
    if url := os.environ.get("CLICKHOUSE_URL"):
        yield parse_url(url)
        return
    folder: Path = tmp_path_factory.mktemp("warehouse")
    process = subprocess.Popen(
        [sys.executable, "-m", "telemetry_pipeline.warehouse.embedded", "--data-dir", folder],
        stdout=subprocess.DEVNULL,
    )
    try:
        ends = time.monotonic() + 60
        while (endpoint := read_endpoint(folder)) is None:
            assert process.poll() is None and time.monotonic() < ends, "no embedded warehouse"
            time.sleep(0.05)
        login = read_users(folder).writer
        yield Address("http", endpoint.host, endpoint.port, login.name, login.password)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="session")
def migrated(warehouse_address: Address) -> Address:
    with connect(warehouse_address) as client:
        migrate(client)
    return warehouse_address


@pytest.fixture
def warehouse(migrated: Address) -> Iterator[Warehouse]:
    """A migrated warehouse without events."""
    with connect(migrated) as client:
        for table in EMPTIED:
            client.command(f"TRUNCATE TABLE {table}")
        yield Warehouse(client)


def with_user(events: Sequence[Event], user: int) -> list[Event]:
    return [replace(event, user=user) for event in events]
