"""dbt's models as assets and every dbt test as an asset check."""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from functools import cached_property
from typing import Any

import dagster as dg
from clickhouse_connect.driver.client import Client
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)
from dbt.version import get_installed_version
from packaging import version

from telemetry_pipeline.dbt_runtime import dbt_environment, dbt_executable, ensure_manifest
from telemetry_pipeline.paths import Project, find_project
from telemetry_pipeline.warehouse.client import connect, find_address


class TelemetryDbtTranslator(DagsterDbtTranslator):
    """Asset keys, groups and kinds: <layer>/<model>, in the group of its layer."""

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        if dbt_resource_props["resource_type"] == "model":
            return dg.AssetKey([dbt_resource_props["schema"], dbt_resource_props["name"]])
        return super().get_asset_key(dbt_resource_props)

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str | None:
        if dbt_resource_props["resource_type"] == "model":
            return str(dbt_resource_props["schema"])
        return super().get_group_name(dbt_resource_props)

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> dg.AssetSpec:
        spec = super().get_asset_spec(manifest, unique_id, project)
        if spec.group_name == "marts":
            window = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=1))
            spec = spec.replace_attributes(freshness_policy=window)
        return spec


class WarehouseDbt(DbtCliResource):
    """dbt's command line without the two things that cost seconds at every start.

    Stock dagster-dbt asks `dbt --version` in a process of its own and builds an adapter for
    metadata; the version is known from the installed package, and row counts come from one query.
    """

    @cached_property
    def _cli_version(self) -> version.Version:
        return version.parse(get_installed_version().to_version_string(skip_matcher=True))

    def _initialize_dbt_core_adapter(self, args: Any) -> Any:
        return None


class BuildConfig(dg.Config):
    """`full_refresh` rebuilds every model from nothing, as the nightly reconciliation does."""

    full_refresh: bool = False


def build_dbt_assets(project: Project) -> tuple[dg.AssetsDefinition, WarehouseDbt]:
    """The assets of dbt_project/ and the resource that runs them. Prepares the manifest."""
    manifest = ensure_manifest(project)
    dbt_project = DbtProject(
        project_dir=project.dbt_dir,
        target_path=project.dbt_target_dir,
        profiles_dir=project.dbt_dir,
    )

    @dbt_assets(
        manifest=manifest,
        project=dbt_project,
        name="dbt_build",
        # Unit tests prove the models on made-up rows: CI's business, not each run's.
        exclude="resource_type:unit_test",
        dagster_dbt_translator=TelemetryDbtTranslator(
            DagsterDbtTranslatorSettings(
                enable_asset_checks=True,
                enable_code_references=True,
                enable_source_tests_as_checks=True,
            )
        ),
    )
    def dbt_models(
        context: dg.AssetExecutionContext, dbt: WarehouseDbt, config: BuildConfig
    ) -> Iterator[Any]:
        """Runs `dbt build` for the selected models and their tests."""
        # The warehouse may have been started anew, on another port, since this process began.
        os.environ.update(dbt_environment(find_project(), find_address(find_project())))
        args = ["build", *(["--full-refresh"] if config.full_refresh else [])]
        with closing(connect(project)) as client:
            for event in dbt.cli(args, context=context).stream():
                yield _with_row_count(event, client, context)

    resource = WarehouseDbt(
        project_dir=str(project.dbt_dir),
        dbt_executable=dbt_executable(),
        profiles_dir=str(project.dbt_dir),
    )
    return dbt_models, resource


def _with_row_count(event: Any, client: Client, context: dg.AssetExecutionContext) -> Any:
    """Add the table's row count to a materialisation; views have none of their own."""
    if not isinstance(event, dg.Output):
        return event
    layer, model = context.asset_key_for_output(event.output_name).path
    counted = client.query(
        "SELECT total_rows FROM system.tables "
        "WHERE database = {layer:String} AND name = {model:String}",
        {"layer": layer, "model": model},
    ).result_rows
    if not counted or counted[0][0] is None:
        return event
    return event.with_metadata({**event.metadata, "dagster/row_count": int(counted[0][0])})
