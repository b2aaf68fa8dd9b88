"""Starts a run when a file source has bytes that no claim covers, or a slice to take over."""

from __future__ import annotations

import dagster as dg

from sensors.source_runs import request_runs
from telemetry_pipeline.assets.jobs import refresh


@dg.sensor(
    name="otel_file",
    job=refresh,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for new lines in the Collector's files. The ledger says what is new.",
)
def otel_file_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    return request_runs(context, "otel_file")
