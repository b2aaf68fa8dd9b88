"""`telemetry dev`: the local stack for one's own events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console

from telemetry_pipeline.catalog.reader import read_catalog
from telemetry_pipeline.config import load_config
from telemetry_pipeline.dbt_runtime import ensure_manifest
from telemetry_pipeline.paths import Project
from telemetry_pipeline.stack import (
    Stack,
    dagster_environment,
    prepare_data_dir,
    require_free_port,
    start_dagster,
    start_warehouse,
)


def run_dev(
    project: Project,
    dagster_port: int,
    console: Console,
    announce: Callable[[dict[str, Any], str], None],
) -> NoReturn:
    """Start every part and stay until Ctrl-C. Raises TelemetryError with one clear line."""
    config = load_config(project.config_file)
    read_catalog(project.catalog_dir)
    prepare_data_dir(project)
    require_free_port(dagster_port, "--dagster-port")
    os.environ.update(dagster_environment(project))
    with Stack(project) as stack:
        console.print(f"warehouse: {start_warehouse(stack)}")
        ensure_manifest(project)
        start_dagster(stack, dagster_port)
        dagster = f"http://127.0.0.1:{dagster_port}"
        sinks = {name: config.place_of(name, project.root) for name in config.sources}
        lines = [f"Dagster  {dagster}", *(f"{name}: {path}" for name, path in sinks.items())]
        announce(
            {"dagster": dagster, "sources": sinks}, "\n".join(lines) + "\nCtrl-C ends everything."
        )
        while True:
            stack.check()
            time.sleep(1)
