"""Jobs and schedules: what runs together, and what a user can switch on in the UI."""

from __future__ import annotations

import dagster as dg

from telemetry_pipeline.assets.dead_letters import ReplayConfig
from telemetry_pipeline.assets.exports import AMPLITUDE
from telemetry_pipeline.sources.dead_letters import DEAD_LETTERS

#: Runs of one source never overlap: dagster.yaml limits this tag to one run a value.
SOURCE_TAG = "telemetry/source"

# One process for a whole run: a process a step costs three seconds each, and the steps are a chain.
refresh = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.all(),
    executor_def=dg.in_process_executor,
    description="New events to raw, the models that read them, then the exports. Sensors start it.",
)

# The same chain for another source: what is replayed reaches the models and the exports.
replay_dead_letters = dg.define_asset_job(
    "replay_dead_letters",
    selection=dg.AssetSelection.all(),
    executor_def=dg.in_process_executor,
    tags={SOURCE_TAG: DEAD_LETTERS},
    config={
        "ops": {
            "ingest": {"config": {"source": DEAD_LETTERS, "replay": ReplayConfig().model_dump()}}
        }
    },
    description=(
        "Judges dead letters again, by the catalogue as it is now, then refreshes the models and "
        "exports. Fill in `replay` (reasons, events, sources, or everything) in the launchpad; "
        "without any it finishes replays that were cut off."
    ),
)

reconcile_marts = dg.define_asset_job(
    "reconcile_marts",
    selection=dg.AssetSelection.groups("staging", "intermediate", "marts"),
    executor_def=dg.in_process_executor,
    config={"ops": {"dbt_build": {"config": {"full_refresh": True}}}},
    description="Builds every model from nothing, with all tests.",
)

refresh_retention = dg.define_asset_job(
    "refresh_retention",
    selection=dg.AssetSelection.tag("adoption", "") | dg.AssetSelection.tag("growth", ""),
    executor_def=dg.in_process_executor,
    description="Adoption, retention and trial conversion, whose periods close at midnight.",
)

export_events = dg.define_asset_job(
    "export_events",
    selection=dg.AssetSelection.assets(AMPLITUDE),
    executor_def=dg.in_process_executor,
    description="Sends what is due to the destinations that are enabled.",
)

JOBS = [refresh, replay_dead_letters, reconcile_marts, refresh_retention, export_events]

# All are off until somebody switches them on: the sensors alone keep everything fresh, and a
# schedule that runs unasked on a laptop is a surprise.
SCHEDULES = [
    dg.ScheduleDefinition(
        name="nightly_reconciliation",
        job=reconcile_marts,
        cron_schedule="30 2 * * *",
        description="Every mart from nothing, each night.",
    ),
    dg.ScheduleDefinition(
        name="daily_retention",
        job=refresh_retention,
        cron_schedule="15 0 * * *",
        description="Retention and adoption just after midnight, when a period may have closed.",
    ),
    dg.ScheduleDefinition(
        name="frequent_export",
        job=export_events,
        cron_schedule="*/5 * * * *",
        description="Exports every five minutes, also when nothing new arrives: retries wait.",
    ),
]
