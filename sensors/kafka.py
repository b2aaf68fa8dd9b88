"""Starts a run when a topic has offsets that no claim covers, or a slice to take over."""

from __future__ import annotations

import dagster as dg

from sensors.source_runs import request_runs
from telemetry_pipeline.assets.jobs import refresh


@dg.sensor(
    name="kafka",
    job=refresh,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for new messages in Kafka topics. The ledger says what is new.",
)
def kafka_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    return request_runs(context, "kafka")
