"""What Dagster loads: everything that runs, named once, complete and described."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from fresh import REPOSITORY


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    os.environ.setdefault("TELEMETRY_ROOT", str(REPOSITORY))
    os.environ.setdefault("TELEMETRY_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    from telemetry_pipeline.definitions import defs

    return defs


@pytest.fixture(scope="module")
def manifest(definitions: dg.Definitions) -> dict[str, dict[str, dict[str, object]]]:
    folder = Path(os.environ["TELEMETRY_DATA_DIR"])
    return json.loads((folder / "dbt" / "target" / "manifest.json").read_text())


def test_the_definitions_load_in_a_fresh_interpreter(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import telemetry_pipeline.definitions as d; print(d.defs)"],
        env=os.environ
        | {"TELEMETRY_ROOT": str(REPOSITORY), "TELEMETRY_DATA_DIR": str(tmp_path / "data")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


def test_every_definition_resolves(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)


def test_the_groups_are_the_layers(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    groups = {graph.get(key).group_name for key in graph.get_all_asset_keys()}
    assert groups == {"raw", "staging", "intermediate", "marts", "exports"}


def test_every_asset_has_an_owner_a_kind_and_a_description(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.owners, key
        assert node.kinds, key
        assert (node.description or "").strip(), key


def test_what_people_look_at_has_a_freshness_policy(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    watched = [key for key in graph.get_all_asset_keys() if key.path[0] in ("marts", "exports")]
    assert len(watched) >= 10
    assert all(graph.get(key).freshness_policy for key in watched)


def test_every_mart_shows_its_columns_and_where_its_code_is(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        if key.path[0] != "marts":
            continue
        metadata = graph.get(key).metadata
        schema = metadata["dagster/column_schema"]
        assert isinstance(schema, dg.TableSchema)
        assert all(column.description for column in schema.columns), key
        assert "dagster/code_references" in metadata, key


def test_every_dbt_test_is_an_asset_check(
    definitions: dg.Definitions, manifest: dict[str, dict[str, dict[str, object]]]
) -> None:
    """Tests whose generated names collide lose their checks; ours are all named."""
    graph = definitions.resolve_asset_graph()
    checks = {key.name for key in graph.asset_check_keys}
    tests = {
        str(node["name"]) for node in manifest["nodes"].values() if node["resource_type"] == "test"
    }
    assert len(tests) >= 30
    assert tests <= checks


def test_every_sensor_is_on_and_every_schedule_waits_to_be_switched_on(
    definitions: dg.Definitions,
) -> None:
    sensors = {sensor.name: sensor.default_status for sensor in definitions.sensors or []}
    assert sensors == dict.fromkeys(
        ("kafka", "otel_file", "redis_stream"), dg.DefaultSensorStatus.RUNNING
    )
    schedules = list(definitions.schedules or [])
    assert {getattr(schedule, "name", "") for schedule in schedules} == {
        "nightly_reconciliation",
        "daily_retention",
        "frequent_export",
    }
    for schedule in schedules:
        assert isinstance(schedule, dg.ScheduleDefinition)
        assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED


def test_dg_check_defs_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("dg"), "check", "defs"],
        env=os.environ
        | {
            "TELEMETRY_ROOT": str(REPOSITORY),
            "TELEMETRY_DATA_DIR": str(tmp_path / "data"),
            "DAGSTER_HOME": str(tmp_path),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
