"""The checks on the raw assets pass on what ingest did; each fails when what it guards breaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg
import pytest
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.assets import checks
from telemetry_pipeline.demo.emitter import emit
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project

EVENTS = "raw.product_telemetry_events_storage"
SETTLED = {"mutations_sync": 2, "lightweight_deletes_sync": 2}

#: Check -> what breaks it. Few records of a small emission are good, so the share is met apart.
BREAKS: list[tuple[Callable[[], dg.AssetCheckResult], str]] = [
    (
        checks.received_is_accounted_for,
        "ALTER TABLE ops.slice_results UPDATE accepted = accepted + 1 WHERE 1",
    ),
    (
        checks.accepted_rows_are_present,
        f"DELETE FROM {EVENTS} WHERE event_id = (SELECT max(event_id) FROM {EVENTS})",
    ),
    (
        checks.events_are_unique,
        f"INSERT INTO {EVENTS} SELECT * REPLACE (1 AS session_id) FROM {EVENTS} "
        "ORDER BY occurred_at DESC LIMIT 1",
    ),
    (
        checks.nothing_was_lost,
        "INSERT INTO ops.source_losses SELECT 'app_events', 'p', 0, 0, 10, 'bytes_gone', now64(6)",
    ),
    (
        checks.dead_letters_are_encrypted,
        "ALTER TABLE raw.dead_letters UPDATE payload_encrypted = '' WHERE reason = 'not_logs'",
    ),
]


@pytest.fixture
def ingested(project: Project, client: Client) -> Client:
    key = read_key("edge", project.keys_dir)
    emit(
        project.sink_dir,
        key.key_id,
        key.secret,
        datetime.now(UTC),
        events=2000,
        users=50,
        organisations=8,
    )
    ingest(project, "app_events", "test")
    assert os.environ["TELEMETRY_ROOT"] == str(project.root)
    return client


def test_all_pass_on_what_ingest_did_but_the_share_of_rejected_warns(ingested: Client) -> None:
    assert all(check().passed for check, _ in BREAKS)
    # An emission this small has the same few hundred bad records as a large one.
    share = checks.few_records_are_rejected()
    assert not share.passed
    assert share.severity is dg.AssetCheckSeverity.WARN


@pytest.mark.parametrize(("check", "damage"), BREAKS)
def test_each_fails_when_what_it_guards_breaks(
    ingested: Client, check: Callable[[], dg.AssetCheckResult], damage: str
) -> None:
    assert check().passed
    ingested.command(damage, settings=SETTLED)
    assert not check().passed


def test_rows_removed_on_record_are_not_missed(ingested: Client) -> None:
    batch = ingested.query(f"SELECT max(batch_id) FROM {EVENTS}").result_rows[0][0]
    ingested.command(
        f"INSERT INTO ops.ledger_adjustments SELECT {batch}, 'erased', 1, 'test', now64(6)"
    )
    assert not checks.accepted_rows_are_present().passed, "noted, not yet removed"
    ingested.command(
        f"DELETE FROM {EVENTS} WHERE event_id = "
        f"(SELECT max(event_id) FROM {EVENTS} WHERE batch_id = {batch})",
        settings=SETTLED,
    )
    assert checks.accepted_rows_are_present().passed
