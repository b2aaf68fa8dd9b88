"""Starts a run when a stream has entries that no claim covers, or a slice to take over."""

from __future__ import annotations

import dagster as dg

from sensors.source_runs import request_runs
from telemetry_pipeline.assets.jobs import refresh


@dg.sensor(
    name="redis_stream",
    job=refresh,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for new entries in Redis streams. The ledger says what is new.",
)
def redis_stream_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    return request_runs(context, "redis_stream")
