"""Everything that runs, named in one place."""

from __future__ import annotations

import warnings

import dagster as dg

from sensors.kafka import kafka_sensor
from sensors.otel_file import otel_file_sensor
from sensors.redis_stream import redis_stream_sensor
from telemetry_pipeline.assets.checks import RAW_CHECKS
from telemetry_pipeline.assets.exports import amplitude, amplitude_is_up_to_date
from telemetry_pipeline.assets.jobs import JOBS, SCHEDULES
from telemetry_pipeline.assets.marts import build_dbt_assets
from telemetry_pipeline.assets.raw import ingest_events
from telemetry_pipeline.paths import find_project

# Code references are marked beta; the pinned version has what is used here.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

dbt_models, dbt = build_dbt_assets(find_project())

defs = dg.Definitions(
    assets=[*dg.with_source_code_references([ingest_events, amplitude]), dbt_models],
    asset_checks=[*RAW_CHECKS, amplitude_is_up_to_date],
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=[kafka_sensor, otel_file_sensor, redis_stream_sensor],
    resources={"dbt": dbt},
)
