"""The sensor: a run for what is new, none for what is not, and patience after failures."""

from __future__ import annotations

import dagster as dg
from clickhouse_connect.driver.client import Client
from dagster._core.test_utils import create_run_for_test

from sensors.otel_file import otel_file_sensor
from sensors.source_runs import run_history
from telemetry_pipeline.assets.jobs import SOURCE_TAG
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project

SOURCE = "app_events"
RUN_TAGS = {SOURCE_TAG: SOURCE}


def tick(instance: dg.DagsterInstance) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance) as context:
        result = otel_file_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def write_line(project: Project) -> None:
    with (project.sink_dir / "events.jsonl").open("a") as sink:
        sink.write('{"resourceLogs": []}\n')


def test_nothing_in_the_sink_starts_nothing(
    project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    result = tick(instance)
    assert not result.run_requests
    assert "nothing new" in str(result.skip_reason)


def test_new_lines_start_one_run_for_their_source(
    project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    write_line(project)
    (request,) = tick(instance).run_requests or []
    assert request.tags[SOURCE_TAG] == SOURCE
    assert request.run_config["ops"]["ingest"]["config"] == {"source": SOURCE}
    # A run key would deduplicate for ever, and a range that failed could never run again.
    assert request.run_key is None


def test_half_a_line_is_not_new_yet(
    project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    (project.sink_dir / "events.jsonl").write_text('{"resourceLogs": [')
    assert not tick(instance).run_requests


def test_what_was_ingested_starts_nothing_again(
    project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    write_line(project)
    ingest(project, SOURCE, "test")
    assert not tick(instance).run_requests


def test_a_run_under_way_is_waited_for(
    project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    write_line(project)
    create_run_for_test(instance, tags=RUN_TAGS, status=dg.DagsterRunStatus.STARTED)
    result = tick(instance)
    assert not result.run_requests
    assert "under way" in str(result.skip_reason)


def test_a_run_that_failed_after_its_insert_is_run_again_though_nothing_is_new(
    project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    """Its events are in the ledger, but the marts and exports never saw them."""
    create_run_for_test(instance, tags=RUN_TAGS, status=dg.DagsterRunStatus.FAILURE)
    history = run_history(instance, SOURCE)
    assert history.failures == 1
    assert "failed" in (history.why_not_now(history.last_ended + 1) or "")
    assert history.why_not_now(history.last_ended + 11) is None


def test_failures_in_a_row_are_met_with_growing_patience_and_a_success_ends_it(
    project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    waits = []
    for _ in range(7):
        create_run_for_test(instance, tags=RUN_TAGS, status=dg.DagsterRunStatus.FAILURE)
        history = run_history(instance, SOURCE)
        waits.append(
            next(
                seconds
                for seconds in range(1, 1000)
                if history.why_not_now(history.last_ended + seconds) is None
            )
        )
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    create_run_for_test(instance, tags=RUN_TAGS, status=dg.DagsterRunStatus.SUCCESS)
    assert run_history(instance, SOURCE).failures == 0
