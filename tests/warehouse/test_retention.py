"""The tables keep rows as long as telemetry.yaml says, and no longer."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.config import Retention
from telemetry_pipeline.warehouse.retention import apply_retention

RAW = "raw.product_telemetry_events_storage"


def test_the_shipped_tables_agree_with_the_default_policy(client: Client) -> None:
    assert apply_retention(client, Retention()) == []


def test_a_shorter_retention_removes_what_is_older(client: Client) -> None:
    client.command(
        f"INSERT INTO {RAW} (event_id, name, occurred_at) "
        "SELECT generateUUIDv4(), 'page_viewed', now64(3) - toIntervalDay(number) "
        "FROM numbers(100)"
    )
    changed = apply_retention(client, Retention(raw_days=30, dead_letter_days=7))
    assert changed == [RAW, "raw.dead_letters", "ops.export_outbox"]
    assert apply_retention(client, Retention(raw_days=30, dead_letter_days=7)) == []
    client.command(f"OPTIMIZE TABLE {RAW} FINAL")
    oldest, rows = client.query(
        f"SELECT dateDiff('day', min(occurred_at), now()), count() FROM {RAW}"
    ).result_rows[0]
    assert (oldest, rows) == (29, 30)
