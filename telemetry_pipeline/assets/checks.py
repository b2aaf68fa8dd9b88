"""Checks on the raw assets: nothing that was received is unaccounted for."""

from __future__ import annotations

from contextlib import closing
from importlib import resources

import dagster as dg

from telemetry_pipeline.assets.raw import DEAD_LETTERS, EVENTS
from telemetry_pipeline.config import load_config
from telemetry_pipeline.paths import find_project
from telemetry_pipeline.warehouse.client import connect

#: How long a loss keeps its check red: nobody can mend it, but everybody should have seen it.
LOSS_ALARM_DAYS = 7


def _query(name: str, **parameters: object) -> list[dict[str, object]]:
    statement = (resources.files("telemetry_pipeline.assets") / "statements" / name).read_text()
    with closing(connect(find_project())) as client:
        return list(client.query(statement, parameters).named_results())


@dg.asset_check(
    asset=EVENTS,
    blocking=True,
    description=(
        "For every finished batch: received = accepted + duplicates + rejected + dropped, "
        "in log records."
    ),
)
def received_is_accounted_for() -> dg.AssetCheckResult:
    (totals,) = _query("conservation.sql")
    return dg.AssetCheckResult(passed=totals["broken_batches"] == 0, metadata=_plain(totals))


@dg.asset_check(
    asset=EVENTS,
    description=(
        "For every batch of the last day, over its days inside the retention: as many rows are "
        "there as were accepted, less those removed on record."
    ),
)
def accepted_rows_are_present() -> dg.AssetCheckResult:
    project = find_project()
    config = load_config(project.config_file)
    (totals,) = _query(
        "rows_present.sql",
        retention_days=config.retention.raw_days,
        batch_days=1,
        timezone=config.reporting.timezone,
    )
    return dg.AssetCheckResult(passed=totals["broken"] == 0, metadata=_plain(totals))


@dg.asset_check(
    asset=EVENTS,
    description="No event stands twice in the view, by event_id, over the last 30 days.",
)
def events_are_unique() -> dg.AssetCheckResult:
    (totals,) = _query("unique_events.sql")
    return dg.AssetCheckResult(passed=totals["doubled"] == 0, metadata=_plain(totals))


@dg.asset_check(
    asset=EVENTS,
    description=(
        "No range of a source was lost in the last week: truncated, vanished or changed under a "
        "claim. ops.source_losses keeps every one."
    ),
)
def nothing_was_lost() -> dg.AssetCheckResult:
    (totals,) = _query("losses.sql", alarm_days=LOSS_ALARM_DAYS)
    return dg.AssetCheckResult(
        passed=totals["losses"] == 0,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata=_plain(totals),
    )


@dg.asset_check(
    asset=DEAD_LETTERS,
    description="Every dead letter has a known reason and an encrypted payload.",
)
def dead_letters_are_encrypted() -> dg.AssetCheckResult:
    (totals,) = _query("dead_letters_encrypted.sql")
    return dg.AssetCheckResult(passed=totals["plain"] == 0, metadata=_plain(totals))


@dg.asset_check(
    asset=DEAD_LETTERS,
    description=(
        "For every batch whose dead letters are inside their retention: as many are there as "
        "were rejected, less those removed on record."
    ),
)
def rejected_records_are_kept() -> dg.AssetCheckResult:
    days = load_config(find_project().config_file).retention.dead_letter_days
    (totals,) = _query("dead_letters_present.sql", retention_days=days)
    return dg.AssetCheckResult(passed=totals["broken"] == 0, metadata=_plain(totals))


@dg.asset_check(
    asset=DEAD_LETTERS,
    description="Warns when more than one record in twenty was rejected over the last day.",
)
def few_records_are_rejected() -> dg.AssetCheckResult:
    (totals,) = _query("rejected_share.sql")
    return dg.AssetCheckResult(
        passed=float(str(totals["share"])) <= 0.05,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_plain(totals),
    )


RAW_CHECKS = [
    received_is_accounted_for,
    accepted_rows_are_present,
    events_are_unique,
    nothing_was_lost,
    dead_letters_are_encrypted,
    rejected_records_are_kept,
    few_records_are_rejected,
]


def _plain(row: dict[str, object]) -> dict[str, int | float | str]:
    return {
        name: value if isinstance(value, int | float) else str(value) for name, value in row.items()
    }
