"""Dagster's history stays bounded while a run starts every few seconds."""

from __future__ import annotations

import dagster as dg
from dagster._core.test_utils import create_run_for_test

from telemetry_pipeline.assets.run_history import MOST_AT_ONCE, prune_runs


def test_the_oldest_successes_go_and_failures_stay() -> None:
    with dg.instance_for_test() as instance:
        failed = create_run_for_test(instance, "refresh", status=dg.DagsterRunStatus.FAILURE)
        other = create_run_for_test(instance, "export_events", status=dg.DagsterRunStatus.SUCCESS)
        runs = [
            create_run_for_test(instance, "refresh", status=dg.DagsterRunStatus.SUCCESS).run_id
            for _ in range(10)
        ]
        assert prune_runs(instance, "refresh", keep=4) == 6
        assert prune_runs(instance, "refresh", keep=4) == 0
        left = {record.dagster_run.run_id for record in instance.get_run_records()}
        assert left == {failed.run_id, other.run_id, *runs[-4:]}


def test_catching_up_is_done_in_portions() -> None:
    with dg.instance_for_test() as instance:
        for _ in range(MOST_AT_ONCE + 5):
            create_run_for_test(instance, "refresh", status=dg.DagsterRunStatus.SUCCESS)
        assert prune_runs(instance, "refresh", keep=0) == MOST_AT_ONCE
        assert prune_runs(instance, "refresh", keep=0) == 5
