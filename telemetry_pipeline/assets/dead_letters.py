"""Replaying dead letters from Dagster, and the check that none goes unaccounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import dagster as dg
from pydantic import Field

from telemetry_pipeline.ingest.dead_letters import Choice, freeze, land_replays, report_of
from telemetry_pipeline.ingest.loader import IngestReport
from telemetry_pipeline.paths import Project


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
