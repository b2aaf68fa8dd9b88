"""The `telemetry` command."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any, NoReturn

import click
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.exceptions import Error as DriverError
from rich.console import Console

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.paths import Project, find_project
from telemetry_pipeline.warehouse.client import WarehouseError, short_reason

EXIT_CODES = """
\b
Exit codes: 0 done, 1 failed, 2 wrong usage or a mistake in telemetry.yaml or catalog/,
3 no warehouse, 4 a destination, 5 a part did not start, 6 figures do not agree.
"""

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON line.")


class _Commands(click.Group):
    """Turns the errors a user can mend into one line and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TelemetryError as error:
            _end(str(error), error.exit_code)
        except (ClickHouseError, DriverError) as error:
            _end(f"warehouse: {short_reason(error)}", WarehouseError.exit_code)
        except KeyboardInterrupt:
            _end("ended", 130)


def _end(message: str, code: int) -> NoReturn:
    click.echo(f"telemetry: {message}", err=True)
    sys.exit(code)


@click.group(cls=_Commands, epilog=EXIT_CODES)
@click.version_option(package_name="telemetry-pipeline")
def main() -> None:
    """Self-hosted, privacy-first product telemetry.

    \b
    Example:
      telemetry demo        watch a demo population's events become metrics
      telemetry dev         start the local stack for your own events
    """


@main.command(epilog=EXIT_CODES)
@click.option("--once", is_flag=True, help="Run to the end without the UI, then stop.")
@as_json
@click.option("--dagster-port", default=3000, show_default=True, help="Where Dagster's UI listens.")
@click.option(
    "--amplitude-port",
    default=8091,
    show_default=True,
    help="Where the Amplitude-shaped server listens.",
)
@click.option("--events", default=200_000, show_default=True, help="About how many events to emit.")
def demo(once: bool, as_json: bool, dagster_port: int, amplitude_port: int, events: int) -> None:
    """Emit a demo population's events and watch them become metrics.

    \b
    Example:
      telemetry demo --once --json
    """
    from telemetry_pipeline.demo.run import DemoError, DemoOptions, run_demo
    from telemetry_pipeline.stack import exit_on_sigterm

    exit_on_sigterm()
    options = DemoOptions(once, dagster_port, amplitude_port, events)
    totals = run_demo(find_project(), options, _console(as_json))
    if totals is None:
        return
    if totals.problems:
        raise DemoError("; ".join(totals.problems))
    if as_json:
        click.echo(json.dumps(totals.as_json()))


@main.command(epilog=EXIT_CODES)
@click.option("--dagster-port", default=3000, show_default=True, help="Where Dagster's UI listens.")
@as_json
def dev(dagster_port: int, as_json: bool) -> None:
    """Start the local stack: the warehouse, Dagster's UI, daemon and sensors. Ctrl-C ends it.

    \b
    Example:
      telemetry dev --dagster-port 3001
    """
    from telemetry_pipeline.dev import run_dev
    from telemetry_pipeline.stack import exit_on_sigterm

    exit_on_sigterm()
    run_dev(find_project(), dagster_port, _console(as_json), announce=_announcer(as_json))


@main.command(epilog=EXIT_CODES)
@as_json
def env(as_json: bool) -> None:
    """Print what `dagster dev`, `dbt build` and `dbt test` need in their environment.

    \b
    Example:
      eval "$(telemetry env)"
    """
    from telemetry_pipeline.stack import environment_of

    variables = environment_of(find_project())
    if as_json:
        click.echo(json.dumps(variables))
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    if "DBT_CLICKHOUSE_HOST" not in variables:
        click.echo(
            "telemetry: no warehouse is running yet: start `telemetry dev` first, "
            "or `telemetry warehouse serve` for dbt alone",
            err=True,
        )


@main.group()
def warehouse() -> None:
    """The ClickHouse warehouse, embedded or at CLICKHOUSE_URL."""


@warehouse.command(epilog=EXIT_CODES)
@click.option("--port", default=0, help="Where to listen on loopback; 0 takes any free port.")
@as_json
def serve(port: int, as_json: bool) -> None:
    """Serve the embedded warehouse until SIGTERM or Ctrl-C.

    \b
    Example:
      telemetry warehouse serve --port 8123
    """
    from telemetry_pipeline.stack import prepare_data_dir
    from telemetry_pipeline.warehouse import embedded
    from telemetry_pipeline.warehouse.client import is_external

    if is_external():
        raise WarehouseError("CLICKHOUSE_URL names a server: nothing embedded is started")
    project = find_project()
    prepare_data_dir(project)
    announce = _announcer(as_json)
    embedded.serve(
        project.warehouse_dir,
        port=port,
        on_ready=lambda end: announce(
            {"host": end.host, "port": end.port, "pid": end.pid},
            f"warehouse ready on http://{end.host}:{end.port}",
        ),
    )


@warehouse.command(epilog=EXIT_CODES)
@as_json
def migrate(as_json: bool) -> None:
    """Bring the warehouse's tables up to this version.

    \b
    Example:
      telemetry warehouse migrate
    """
    from telemetry_pipeline.warehouse.client import connect
    from telemetry_pipeline.warehouse.migrate import migrate as apply_migrations

    with closing(connect(find_project())) as client:
        applied = [f"{item.number:04}_{item.name}" for item in apply_migrations(client)]
    _announcer(as_json)(
        {"applied": applied}, f"applied {len(applied)}: {', '.join(applied) or 'nothing to do'}"
    )


@main.group()
def keys() -> None:
    """The keys that make pseudonyms and encrypt dead letters."""


@keys.command(epilog=EXIT_CODES)
@as_json
def init(as_json: bool) -> None:
    """Make a random key file (mode 600, in .data/keys) for each key that is missing.

    \b
    Example:
      telemetry keys init
    """
    from telemetry_pipeline.identity.keys import create_missing_keys
    from telemetry_pipeline.stack import prepare_data_dir

    project = find_project()
    prepare_data_dir(project)
    made = create_missing_keys(project.keys_dir)
    _announcer(as_json)({"made": made}, f"made {len(made)}: {', '.join(made) or 'all are there'}")


@main.command(epilog=EXIT_CODES)
@click.option("--source", default="", help="Only this source of telemetry.yaml.")
@as_json
def ingest(source: str, as_json: bool) -> None:
    """Land what the sources have, once, without Dagster.

    \b
    Example:
      telemetry ingest --source app_events
    """
    from telemetry_pipeline.config import load_config
    from telemetry_pipeline.ingest.run import ingest as run_ingest

    project = find_project()
    names = [source] if source else list(load_config(project.config_file).sources)
    for name in names:
        report = run_ingest(project, name, "by-hand")
        _announcer(as_json)(
            {"source": name, **vars(report)},
            f"{name}: received {report.received:,}, accepted {report.accepted:,}, "
            f"duplicates {report.duplicates:,}, rejected {sum(report.rejected.values()):,}, "
            f"dropped {sum(report.dropped.values()):,}",
        )


@main.command("sql", epilog=EXIT_CODES)
@click.argument("statement", type=click.Choice(["stage", "land"]))
@as_json
def show_sql(statement: str, as_json: bool) -> None:
    """Print a statement that ingest runs, compiled from catalog/ and telemetry.yaml.

    \b
    Example:
      telemetry sql stage
    """
    from telemetry_pipeline.catalog.reader import read_catalog
    from telemetry_pipeline.config import load_config
    from telemetry_pipeline.ingest.statements import compile_contract

    project: Project = find_project()
    contract = compile_contract(read_catalog(project.catalog_dir), load_config(project.config_file))
    text = contract.stage_template if statement == "stage" else contract.land_sql
    _announcer(as_json)({"statement": text, "contract_hash": contract.contract_hash}, text)


def _console(as_json: bool) -> Console:
    # With --json, standard output carries the JSON line and nothing else.
    return Console(stderr=as_json)


def _announcer(as_json: bool) -> Callable[[dict[str, Any], str], None]:
    return lambda data, text: click.echo(json.dumps(data, default=str) if as_json else text)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
