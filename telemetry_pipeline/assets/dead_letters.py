"""Replaying dead letters from Dagster, and the check that none goes unaccounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import resources

import dagster as dg
from pydantic import Field

from telemetry_pipeline.config import load_config
from telemetry_pipeline.ingest.dead_letters import Choice, freeze, land_replays, report_of
from telemetry_pipeline.ingest.loader import IngestReport
from telemetry_pipeline.paths import Project, find_project
from telemetry_pipeline.warehouse.client import connect


class ReplayConfig(dg.Config):
    """Which dead letters to judge again: those that meet every filter that is given.

    Without any, nothing new is chosen: replays that were cut off are finished.
    """

    reasons: list[str] = Field(default=[], description="unknown_event, invalid_attribute, …")
    events: list[str] = Field(
        default=[], description="Event names, also of events that were unknown when they came."
    )
    sources: list[str] = Field(default=[], description="Sources of telemetry.yaml.")
    everything: bool = Field(default=False, description="Every letter that waits, unfiltered.")

    @property
    def choice(self) -> Choice:
        return Choice(
            reasons=tuple(self.reasons),
            events=tuple(self.events),
            sources=tuple(self.sources),
            everything=self.everything,
        )


def replay(
    project: Project,
    config: ReplayConfig,
    context: dg.AssetExecutionContext,
    on_slice: Callable[[IngestReport], None],
) -> Iterator[IngestReport]:
    """Freeze what is chosen, if anything is, and land every replay that is unfinished."""
    replay_id, complaint = None, None
    if config.choice.is_unlimited:
        context.log.info("no filter is given: only replays that were cut off are finished")
    else:
        replay_id, selection = freeze(project, config.choice)
        complaint = selection.complaint
        context.log.info(f"replay {replay_id or 'of nothing'}: {selection}")
    yield from land_replays(project, context.run.run_id, on_slice=on_slice)
    if replay_id:
        context.log.info(f"{report_of(project, replay_id)}")
    if complaint:
        context.log.error(complaint)


@dg.asset_check(
    asset=dg.AssetKey(["raw", "dead_letters"]),
    description=(
        "For every batch whose dead letters are inside their retention: as many are there as "
        "were rejected, less those removed on record."
    ),
)
def rejected_records_are_kept() -> dg.AssetCheckResult:
    project = find_project()
    statement = resources.files("telemetry_pipeline.assets") / "statements/dead_letters_present.sql"
    days = load_config(project.config_file).retention.dead_letter_days
    with closing(connect(project)) as client:
        (totals,) = client.query(
            statement.read_text(encoding="utf-8"), {"retention_days": days}
        ).named_results()
    return dg.AssetCheckResult(passed=totals["broken"] == 0, metadata=totals)
