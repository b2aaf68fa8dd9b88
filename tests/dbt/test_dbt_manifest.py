"""What the project promises about itself: names, descriptions, contracts, owners, the catalogue."""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml
from clickhouse_connect.driver.client import Client
from dbt_command import Dbt
from history import REPOSITORY, load


@pytest.fixture(scope="module")
def manifest(dbt: Dbt) -> dict:
    dbt.succeed("parse")
    return dbt.manifest


@pytest.fixture(scope="module")
def dagster_dbt() -> ModuleType:
    """Imported late: a parser that comes with it warns about its own retirement."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("dagster_dbt")


@pytest.fixture(scope="module")
def models(manifest: dict) -> dict[str, dict]:
    return {
        node["name"]: node
        for node in manifest["nodes"].values()
        if node["resource_type"] == "model"
    }


def data_tests(manifest: dict) -> list[str]:
    nodes = manifest["nodes"].values()
    return [node["name"] for node in nodes if node["resource_type"] == "test"]


def test_names_of_tests_are_unique_and_given(manifest: dict) -> None:
    names = data_tests(manifest)
    assert [name for name, times in Counter(names).items() if times > 1] == []
    # dbt's own names start with the kind of test; ours start with what is tested.
    assert [name for name in names if re.match(r"(not_null|unique|accepted|relation)", name)] == []
    assert len(names) >= 45


def test_every_test_is_a_check_of_an_asset(manifest: dict, dagster_dbt: ModuleType) -> None:
    @dagster_dbt.dbt_assets(manifest=manifest)
    def every_model() -> Iterator[Any]:
        yield

    assert Counter(check.name for check in every_model.check_specs) == Counter(data_tests(manifest))


def test_every_layer_is_a_group_with_owners(
    manifest: dict, models: dict[str, dict], dagster_dbt: ModuleType
) -> None:
    specs = dagster_dbt.build_dbt_asset_specs(manifest=manifest)
    assert len(specs) == len(models)
    for spec in specs:
        assert spec.group_name == spec.key.path[0]
        assert spec.owners, spec.key
    assert {spec.group_name for spec in specs} == {"staging", "intermediate", "marts"}


def test_everything_is_described(models: dict[str, dict]) -> None:
    for name, model in models.items():
        assert model["description"].strip(), name
        for column in model["columns"].values():
            assert column["description"].strip(), (name, column["name"])


def test_the_first_line_says_the_grain(models: dict[str, dict]) -> None:
    for name, model in models.items():
        assert model["raw_code"].startswith("-- One row per "), name


def test_every_mart_has_an_enforced_contract(models: dict[str, dict]) -> None:
    marts = {name: model for name, model in models.items() if model["schema"] == "marts"}
    assert len(marts) >= 11
    for name, model in marts.items():
        assert model["config"]["contract"]["enforced"], name
        assert all(column["data_type"] for column in model["columns"].values()), name


PERSONAL_COLUMNS = {"anonymous_user_id", "session_id", "session_key", "event_id"}


def test_no_mart_has_a_row_about_a_person(models: dict[str, dict]) -> None:
    for name, model in models.items():
        if model["schema"] == "marts":
            assert not PERSONAL_COLUMNS & model["columns"].keys(), name


def test_stored_personal_data_is_registered_for_erasure(models: dict[str, dict]) -> None:
    for name, model in models.items():
        if model["config"]["materialized"] != "view":
            registered = set(model["config"]["meta"].get("personal_data", []))
            assert registered == PERSONAL_COLUMNS & model["columns"].keys(), name


def test_documented_columns_are_the_real_ones(
    client: Client, dbt: Dbt, models: dict[str, dict]
) -> None:
    if dbt.holds is None:
        dbt.build_once("nothing", lambda: load(client, []), "run")
    for name, model in models.items():
        found = client.query(f"DESCRIBE TABLE {model['schema']}.{name}").result_rows
        documented = {column["name"]: column["data_type"] for column in model["columns"].values()}
        assert {row[0]: row[1] for row in found} == documented, name


def test_staging_has_every_event_of_the_catalogue_with_its_attributes(
    models: dict[str, dict],
) -> None:
    attributes = {
        attribute["key"]: attribute
        for attribute in yaml.safe_load((REPOSITORY / "catalog/attributes.yaml").read_text())[
            "attributes"
        ]
    }
    events = [
        event
        for file in (REPOSITORY / "catalog/events").glob("*.yaml")
        for event in yaml.safe_load(file.read_text())["events"]
    ]
    assert events
    for event in events:
        model = models["stg_" + event["name"].replace(".", "_")]
        columns = {column["name"]: column["data_type"] for column in model["columns"].values()}
        for use in event["attributes"]:
            key = attributes.get(use.get("ref"), {}).get("annotations", {}).get("payload_key")
            if key is None:
                continue
            column_type = _column_type(attributes[use["ref"]]["type"], use["requirement_level"])
            assert columns.pop(_snake_case(key), None) == column_type, (event["name"], key)
            assert f"payload('{key}', '{column_type}')" in model["raw_code"]
        assert columns.keys() == EVENT_COLUMNS, event["name"]


EVENT_COLUMNS = {
    "org_id_hash",
    "event_id",
    "schema_version",
    "session_id",
    "anonymous_user_id",
    "route_pattern",
    "occurred_at",
    "ingested_at",
    "source",
}


def _column_type(catalogued: object, requirement_level: str) -> str:
    types = {"int": "Int64", "double": "Float64", "boolean": "Bool", "string": "String"}
    column_type = types[catalogued] if isinstance(catalogued, str) else "String"
    return column_type if requirement_level == "required" else f"Nullable({column_type})"


def _snake_case(key: str) -> str:
    return re.sub(r"[A-Z]", lambda capital: "_" + capital[0].lower(), key)
