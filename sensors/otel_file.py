"""Starts a run when a file source has bytes that no claim covers, or a slice to take over."""

from __future__ import annotations

import time
from contextlib import closing

import dagster as dg

from telemetry_pipeline.assets.jobs import SOURCE_TAG, refresh
from telemetry_pipeline.config import load_config
from telemetry_pipeline.ingest.ledger import Ledger
from telemetry_pipeline.ingest.run import build_source
from telemetry_pipeline.paths import find_project
from telemetry_pipeline.warehouse.client import connect

ACTIVE = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
FIRST_BACKOFF_SECONDS = 10
LONGEST_BACKOFF_SECONDS = 300


@dg.sensor(
    name="otel_file",
    job=refresh,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for new lines in the Collector's files. The ledger says what is new.",
)
def otel_file_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One run request for each source with something to do and no run under way.

    There is no run key: it would deduplicate for ever, and a range that failed must run again.
    """
    project = find_project()
    config = load_config(project.config_file)
    requests, reasons = [], []
    with closing(connect(project)) as client:
        for name in config.sources:
            ledger = Ledger(client, name)
            waiting = build_source(project, config, name).waiting_bytes(ledger.positions())
            to_take_over = sum(left.may_be_taken_over for left in ledger.open_claims())
            if not waiting and not to_take_over:
                reasons.append(f"{name}: nothing new")
            elif (held_back := why_not_now(context.instance, name, time.time())) is not None:
                reasons.append(f"{name}: {held_back}")
            else:
                requests.append(
                    dg.RunRequest(
                        run_config={"ops": {"ingest": {"config": {"source": name}}}},
                        tags={SOURCE_TAG: name, "telemetry/waiting_bytes": str(waiting)},
                    )
                )
    skipped = None if requests else dg.SkipReason("; ".join(reasons))
    return dg.SensorResult(run_requests=requests, skip_reason=skipped)


def why_not_now(instance: dg.DagsterInstance, source: str, now: float) -> str | None:
    """Why a source with news gets no run now: one is under way, or the last ones failed."""
    runs = instance.get_run_records(dg.RunsFilter(tags={SOURCE_TAG: source}), limit=8)
    if any(run.dagster_run.status in ACTIVE for run in runs):
        return "a run is under way"
    failures = 0
    for run in runs:
        if run.dagster_run.status is not dg.DagsterRunStatus.FAILURE:
            break
        failures += 1
    if failures == 0:
        return None
    wait = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (failures - 1))
    ended = runs[0].end_time or runs[0].update_timestamp.timestamp()
    left = ended + wait - now
    return f"the last {failures} run(s) failed; next try in {left:.0f} s" if left > 0 else None
