"""What a demo run came to: read from the warehouse, Dagster and the Amplitude-shaped server."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import dagster as dg
import httpx
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.config import load_config
from telemetry_pipeline.destinations.export import amplitude_due
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import connect


@dataclass(frozen=True)
class DemoTotals:
    """Totals of .data/; `new` is what this run ingested. Unit: log records, rows, checks."""

    emitted: int
    received: int
    accepted: int
    duplicates: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    raw_rows: int
    new: int
    marts: dict[str, int]
    checks: dict[str, int]
    amplitude_due: int
    amplitude_events: int
    seconds: float
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The keys that are printed; problems go to standard error instead."""
        return {name: value for name, value in asdict(self).items() if name != "problems"}


def collect(
    project: Project, amplitude_url: str, emitted: int, started_at: datetime, seconds: float
) -> DemoTotals:
    """Read every total and compare what must agree."""
    with closing(connect(project, role="reader")) as client:
        ledger = _ledger_sums(client)
        raw_rows = _number(client, "SELECT count() FROM raw.product_telemetry_events")
        new = _number(
            client,
            "SELECT sum(received) FROM ops.slice_results "
            f"WHERE finished_at >= fromUnixTimestamp64Milli({int(started_at.timestamp() * 1000)})",
        )
        marts = {
            name: _number(client, f"SELECT count() FROM marts.{name}") for name in _marts(client)
        }
    with closing(connect(project)) as client:
        globs = load_config(project.config_file).allowlist("amplitude")
        due = amplitude_due(client, "amplitude", globs)
    checks, failed = _checks()
    arrived = httpx.get(f"{amplitude_url}/received/summary", timeout=30, trust_env=False).json()
    totals = DemoTotals(
        emitted=emitted,
        raw_rows=raw_rows,
        new=new,
        marts=marts,
        checks=checks,
        amplitude_due=due,
        amplitude_events=int(arrived["events"]),
        seconds=round(seconds, 1),
        received=ledger["received"],
        accepted=ledger["accepted"],
        duplicates=ledger["duplicates"],
        rejected=ledger["rejected"],
        dropped=ledger["dropped"],
    )
    return replace(totals, problems=[*_disagreements(totals), *failed])


def _ledger_sums(client: Client) -> dict[str, Any]:
    row = next(
        iter(
            client.query(
                "SELECT sum(received) AS received, sum(accepted) AS accepted, "
                "sum(duplicates) AS duplicates, sumMap(rejected) AS rejected, "
                "sumMap(dropped) AS dropped FROM ops.slice_results"
            ).named_results()
        )
    )
    return dict(row)


def _marts(client: Client) -> list[str]:
    rows = client.query("SELECT name FROM system.tables WHERE database = 'marts' ORDER BY name")
    return [str(row[0]) for row in rows.result_rows]


def _number(client: Client, statement: str) -> int:
    return int(client.query(statement).result_rows[0][0] or 0)


def _checks() -> tuple[dict[str, int], list[str]]:
    """The latest evaluation of every asset check, and a line for each that did not pass."""
    from telemetry_pipeline.definitions import defs

    keys = defs.resolve_asset_graph().asset_check_keys
    with dg.DagsterInstance.get() as instance:
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
    passed, problems = 0, []
    for key in keys:
        record = latest.get(key)
        evaluation = record.event.asset_check_evaluation if record and record.event else None
        if evaluation is not None and evaluation.passed:
            passed += 1
        elif record is not None:
            problems.append(f"check {key.name} on {key.asset_key.to_user_string()} did not pass")
    return {"passed": passed, "failed": len(problems)}, problems


def _disagreements(totals: DemoTotals) -> list[str]:
    accounted = (
        totals.accepted
        + totals.duplicates
        + sum(totals.rejected.values())
        + sum(totals.dropped.values())
    )
    pairs = {
        "received and emitted": (totals.received, totals.emitted),
        "received and accounted for": (totals.received, accounted),
        "raw rows and accepted": (totals.raw_rows, totals.accepted),
        "events at Amplitude and due": (totals.amplitude_events, totals.amplitude_due),
    }
    problems = [
        f"{what} differ: {left:,} and {right:,}"
        for what, (left, right) in pairs.items()
        if left != right
    ]
    return problems + [f"mart {name} is empty" for name, rows in totals.marts.items() if not rows]
