"""Keeps the tables' TTLs what telemetry.yaml promises."""

from __future__ import annotations

import re

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.config import Retention

_INTERVAL = re.compile(r"TTL .*?toIntervalDay\((?P<days>\d+)\)")


def apply_retention(client: Client, retention: Retention) -> list[str]:
    """Set the TTL of every table whose TTL differs; returns their names.

    The outbox outlives the raw event by a day, or the event would be due again on its last day.
    """
    wanted = {
        "raw.product_telemetry_events_storage": ("occurred_at", retention.raw_days),
        "raw.dead_letters": ("ingested_at", retention.dead_letter_days),
        "ops.export_outbox": ("occurred_at", retention.raw_days + 1),
    }
    changed = []
    for table, (column, days) in wanted.items():
        if _days(client, table) != days:
            client.command(
                f"ALTER TABLE {table} "
                f"MODIFY TTL toDateTime({column}) + INTERVAL {days:d} DAY DELETE"
            )
            changed.append(table)
    return changed


def _days(client: Client, table: str) -> int | None:
    database, name = table.split(".")
    described = client.query(
        "SELECT engine_full FROM system.tables "
        "WHERE database = {database:String} AND name = {name:String}",
        {"database": database, "name": name},
    ).result_rows
    found = _INTERVAL.search(described[0][0]) if described else None
    return int(found["days"]) if found else None
