"""The raw assets: events landed from every source, and what was rejected on the way."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import dagster as dg
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.assets.dead_letters import ReplayConfig, replay
from telemetry_pipeline.assets.run_history import prune_runs
from telemetry_pipeline.config import Config, load_config
from telemetry_pipeline.ingest.loader import IngestReport
from telemetry_pipeline.ingest.run import build_source, ingest
from telemetry_pipeline.paths import Project, find_project
from telemetry_pipeline.sources.dead_letters import DEAD_LETTERS as REPLAYS
from telemetry_pipeline.warehouse.client import connect

EVENTS = dg.AssetKey(["raw", "product_telemetry_events"])
DEAD_LETTERS = dg.AssetKey(["raw", "dead_letters"])

OWNERS = ["team:telemetry-platform"]

#: Bookkeeping that the same run writes and the models read.
BOOKKEEPING = {
    "slice_results": "The end of every slice: received, accepted, duplicates, rejected, dropped.",
    "touches": "Append-only log of what may have changed a day; its hash is the day's version.",
    "catalog_events": "The events of the catalogue with their class, as rows for the models.",
    "reporting_config": "Features of telemetry.yaml as rows: a change needs no new manifest.",
}


class IngestConfig(dg.Config):
    """Which source to read; the sensors name one, a run by hand reads all."""

    source: str = ""
    replay: ReplayConfig = ReplayConfig()


@dg.multi_asset(
    name="ingest",
    specs=[
        dg.AssetSpec(
            EVENTS,
            group_name="raw",
            description=(
                "Every accepted event exactly once, pseudonymised, for 180 days. The view over "
                "the storage table that all models and the reference queries read."
            ),
            owners=OWNERS,
            kinds={"clickhouse", "otel"},
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=1)),
            metadata={"dagster/table_name": "raw.product_telemetry_events"},
        ),
        dg.AssetSpec(
            DEAD_LETTERS,
            group_name="raw",
            description=(
                "What could not be accepted, each record with its reason, encrypted, for 14 days."
            ),
            owners=OWNERS,
            kinds={"clickhouse"},
            metadata={"dagster/table_name": "raw.dead_letters"},
        ),
        *(
            dg.AssetSpec(
                ["ops", table],
                group_name="raw",
                description=description,
                owners=OWNERS,
                kinds={"clickhouse"},
                metadata={"dagster/table_name": f"ops.{table}"},
            )
            for table, description in BOOKKEEPING.items()
        ),
    ],
)
def ingest_events(
    context: dg.AssetExecutionContext, config: IngestConfig
) -> Iterator[dg.MaterializeResult[None]]:
    """Lands what the sources have; the ledger decides what is new, not this run."""
    project = find_project()
    policy = load_config(project.config_file)
    sources = [config.source] if config.source else list(policy.sources)
    total = IngestReport()
    lags = {}
    for source in sources:
        for report in _land(project, source, config.replay, context):
            _add(total, report)
        lags[f"{source}/waiting_{_unit(project, policy, source)}"] = report.waiting
    prune_runs(context.instance, context.run.job_name)
    with closing(connect(project)) as client:
        shapes = {
            table: _shape(client, table)
            for table in (
                "raw.product_telemetry_events",
                "raw.dead_letters",
                *(f"ops.{table}" for table in BOOKKEEPING),
            )
        }
    yield dg.MaterializeResult(
        asset_key=EVENTS,
        metadata={
            **shapes["raw.product_telemetry_events"],
            "received": total.received,
            "accepted": total.accepted,
            "duplicates": total.duplicates,
            "rejected": sum(total.rejected.values()),
            "dropped": dg.MetadataValue.json(total.dropped),
            "unknown_attributes": total.unknown_attributes,
            "slices": total.slices,
            "slices_recovered": total.recovered,
            "slices_lost": total.lost_slices,
            "bytes": total.bytes,
            **lags,
        },
    )
    yield dg.MaterializeResult(
        asset_key=DEAD_LETTERS,
        metadata={
            **shapes["raw.dead_letters"],
            "rejected": dg.MetadataValue.json(total.rejected),
        },
    )
    for table in BOOKKEEPING:
        yield dg.MaterializeResult(asset_key=["ops", table], metadata=shapes[f"ops.{table}"])


def _land(
    project: Project, source: str, replay_config: ReplayConfig, context: dg.AssetExecutionContext
) -> Iterator[IngestReport]:
    on_slice = _progress(context, source)
    if source == REPLAYS:
        yield from replay(project, replay_config, context, on_slice)
    else:
        yield ingest(project, source, context.run.run_id, on_slice=on_slice)


def _unit(project: Project, policy: Config, source: str) -> str:
    """What a source's lag is counted in: bytes, messages, entries."""
    with closing(build_source(project, policy, source)) as opened:
        return opened.unit


def _progress(context: dg.AssetExecutionContext, source: str) -> Callable[[IngestReport], None]:
    def report_slice(report: IngestReport) -> None:
        context.log.info(
            f"{source}: slice {report.slices}, {report.received:,} records, "
            f"{report.bytes / 1e6:,.0f} MB so far"
        )

    return report_slice


def _add(total: IngestReport, report: IngestReport) -> None:
    for name, value in vars(report).items():
        held = getattr(total, name)
        if isinstance(value, dict):
            for reason, records in value.items():
                held[reason] = held.get(reason, 0) + records
        else:
            setattr(total, name, held + value)


def _shape(client: Client, table: str) -> dict[str, Any]:
    """Row count and column schema of one of our own tables or views, as Dagster shows them."""
    columns = client.query(f"DESCRIBE TABLE {table}").result_rows
    rows = client.query(f"SELECT count() FROM {table}").result_rows[0][0]
    return {
        "dagster/row_count": rows,
        "dagster/column_schema": dg.TableSchema(
            [dg.TableColumn(name=column[0], type=column[1]) for column in columns]
        ),
    }
