"""What the sensors of all sources share: which source needs a run, and when it gets one."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

import dagster as dg
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.assets.jobs import SOURCE_TAG
from telemetry_pipeline.config import Config, load_config
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.ingest.ledger import Ledger
from telemetry_pipeline.ingest.run import build_source
from telemetry_pipeline.paths import Project, find_project
from telemetry_pipeline.warehouse.client import connect

ACTIVE = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
FAILED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
FIRST_BACKOFF_SECONDS = 10
LONGEST_BACKOFF_SECONDS = 300


def request_runs(context: dg.SensorEvaluationContext, kind: str) -> dg.SensorResult:
    """One run request for each source of `kind` with something to do and no run under way.

    There is no run key: it would deduplicate for ever, and a range that failed must run again.
    Raises TelemetryError when a source cannot be looked at and no other needs a run.
    """
    project = find_project()
    config = load_config(project.config_file)
    names = [name for name, settings in config.sources.items() if settings.kind == kind]
    if not names:
        return dg.SensorResult(skip_reason=dg.SkipReason(f"no source of kind {kind}"))
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    errors: list[TelemetryError] = []
    with closing(connect(project)) as client:
        for name in names:
            try:
                request = _request_run(context.instance, project, config, client, name)
            except TelemetryError as error:
                # One source that cannot be looked at must not keep the others waiting.
                context.log.error(f"{name}: {error}")
                errors.append(error)
                continue
            if isinstance(request, str):
                reasons.append(f"{name}: {request}")
            else:
                requests.append(request)
    if errors and not requests:
        raise errors[0]
    skipped = None if requests else dg.SkipReason("; ".join(reasons))
    return dg.SensorResult(run_requests=requests, skip_reason=skipped)


def _request_run(
    instance: dg.DagsterInstance, project: Project, config: Config, client: Client, name: str
) -> dg.RunRequest | str:
    """A run for one source, or why it gets none now."""
    history = run_history(instance, name)
    if history.is_active:
        return "a run is under way"
    ledger = Ledger(client, name)
    with closing(build_source(project, config, name)) as source:
        waiting, unit = source.waiting(ledger.positions()), source.unit
    to_take_over = sum(left.may_be_taken_over for left in ledger.open_claims())
    # A run that failed after its insert left the marts behind: it must run again, too.
    if not waiting and not to_take_over and not history.failures:
        return "nothing new"
    if (held_back := history.why_not_now(time.time())) is not None:
        return held_back
    return dg.RunRequest(
        run_config={"ops": {"ingest": {"config": {"source": name}}}},
        tags={SOURCE_TAG: name, "telemetry/waiting": f"{waiting} {unit}"},
    )


@dataclass(frozen=True)
class RunHistory:
    """The latest runs of one source: whether one is under way, and how many failed in a row.

    `last_ended`: seconds since 1970.
    """

    is_active: bool
    failures: int
    last_ended: float

    def why_not_now(self, now: float) -> str | None:
        """Why a source with something to do gets no run now; None when it gets one."""
        if self.is_active:
            return "a run is under way"
        if self.failures == 0:
            return None
        wait = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (self.failures - 1))
        left = self.last_ended + wait - now
        return f"the last {self.failures} failed; next try in {left:.0f} s" if left > 0 else None


def run_history(instance: dg.DagsterInstance, source: str) -> RunHistory:
    """Read the latest runs of `source` from Dagster."""
    records = instance.get_run_records(dg.RunsFilter(tags={SOURCE_TAG: source}), limit=8)
    statuses = [record.dagster_run.status for record in records]
    failures = next(
        (index for index, status in enumerate(statuses) if status not in FAILED), len(statuses)
    )
    ended = records[0].end_time or records[0].update_timestamp.timestamp() if records else 0.0
    return RunHistory(any(status in ACTIVE for status in statuses), failures, ended)
