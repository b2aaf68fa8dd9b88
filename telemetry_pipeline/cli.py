"""The `telemetry` command."""

from __future__ import annotations

import functools
import json
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, NoReturn

import click
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.exceptions import Error as DriverError
from rich.console import Console

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.ingest.reasons import REJECTED
from telemetry_pipeline.paths import Project, find_project
from telemetry_pipeline.warehouse.client import WarehouseError, short_reason

EXIT_CODES = """
\b
Exit codes: 0 done, 1 failed, 2 wrong usage or a mistake in telemetry.yaml or catalog/,
3 no warehouse, 4 a destination, 5 a part did not start, 6 figures do not agree.
"""

_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])

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


@main.group()
def dlq() -> None:
    """Dead letters: records that were rejected, encrypted, until they are replayed or expire."""


_FILTERS = (
    click.option("--reason", "reasons", multiple=True, type=click.Choice(list(REJECTED))),
    click.option("--event", "events", multiple=True, help="Event name; also of unknown events."),
    click.option("--source", "sources", multiple=True, help="Source of telemetry.yaml."),
    click.option("--batch", "batches", multiple=True, type=int, help="batch_id of the ledger."),
    click.option("--since", type=_MOMENT, help="Written at or after this time (UTC)."),
    click.option("--until", type=_MOMENT, help="Written before this time (UTC)."),
)


def _choice_of_letters(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the filters, and hands them over as one Choice."""

    @functools.wraps(command)
    def with_choice(**options: Any) -> None:
        names = ("reasons", "events", "sources", "batches", "since", "until")
        filters = {name: options.pop(name) for name in names}
        for name in ("since", "until"):
            if filters[name]:
                filters[name] = filters[name].replace(tzinfo=UTC)
        command(filters=filters, **options)

    for option in reversed(_FILTERS):
        with_choice = option(with_choice)
    return with_choice


@dlq.command("list", epilog=EXIT_CODES)
@_choice_of_letters
@click.option("--each", is_flag=True, help="Single letters, newest first, with their ids.")
@click.option("--limit", default=20, show_default=True, help="How many letters --each gives.")
@as_json
def list_dead_letters(filters: dict[str, Any], each: bool, limit: int, as_json: bool) -> None:
    """Count dead letters by reason, field, event, source and state. Shows no personal value.

    \b
    Example:
      telemetry dlq list --reason unknown_event
    """
    from telemetry_pipeline.ingest.dead_letters import Choice, list_each, list_letters

    project, choice = find_project(), Choice(**filters)
    rows = list_each(project, choice, limit) if each else list_letters(project, choice)
    if as_json:
        click.echo(json.dumps({"dead_letters": rows}, default=_plain))
    elif rows:
        click.echo(_table(rows))
    else:
        click.echo("no dead letters")


@dlq.command("show", epilog=EXIT_CODES)
@click.argument("letters", nargs=-1, required=True, metavar="LETTER...")
@as_json
def show_dead_letters(letters: tuple[str, ...], as_json: bool) -> None:
    """Decrypt single letters, by the ids that `dlq list --each` gives.

    PRINTS PERSONAL DATA: pseudonymous edge ids, and whatever free text was sent. Every letter that
    is opened is recorded, with the time and your operating system user, in ops.dead_letter_access.

    \b
    Example:
      telemetry dlq show 12325876047256137242-67108865
    """
    from telemetry_pipeline.ingest.dead_letters import show_letter

    for letter in letters:
        shown = show_letter(find_project(), letter)
        document = {**shown.described, "payload": shown.payload}
        click.echo(json.dumps(document, default=_plain, indent=None if as_json else 2))


@dlq.command("replay", epilog=EXIT_CODES)
@_choice_of_letters
@click.option("--all", "everything", is_flag=True, help="Every letter that waits.")
@click.option("--resume", is_flag=True, help="Choose nothing new; finish what was cut off.")
@click.option("--dry-run", is_flag=True, help="Only say what would be replayed.")
@as_json
def replay_dead_letters(
    filters: dict[str, Any], everything: bool, resume: bool, dry_run: bool, as_json: bool
) -> None:
    """Judge dead letters again, by the catalogue as it is now. Each event lands exactly once.

    Takes letters that no replay took before. Needs a filter, --all or --resume. Exits with 1 when
    letters did not open with the key at hand: the others are replayed.

    \b
    Example:
      telemetry dlq replay --reason unknown_event --event report_exported
    """
    from telemetry_pipeline.ingest import dead_letters

    project, choice = find_project(), dead_letters.Choice(**filters, everything=everything)
    if resume != choice.is_unlimited:
        raise click.UsageError("give a filter, --all or (alone) --resume")
    if dry_run:
        selection = dead_letters.select(project, choice)
        taken = ", ".join(f"{reason} {count:,}" for reason, count in selection.taken.items())
        _announcer(as_json)(vars(selection), f"would replay: {taken or 'nothing'}")
        return
    reports, complaint = dead_letters.replay(project, None if resume else choice, "by-hand")
    announce = _announcer(as_json)
    if as_json:
        announce({"replays": [vars(report) for report in reports]}, "")
    elif not reports:
        announce({}, "nothing to replay")
    for report in () if as_json else reports:
        announce({}, str(report))
    if complaint:
        raise TelemetryError(complaint)


@dlq.command("purge", epilog=EXIT_CODES)
@_choice_of_letters
@click.option("--all", "everything", is_flag=True, help="Every letter.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def purge_dead_letters(filters: dict[str, Any], everything: bool, yes: bool, as_json: bool) -> None:
    """Remove dead letters for good; the ledger keeps how many. Needs a filter or --all.

    Letters that an unfinished replay holds stay.

    \b
    Example:
      telemetry dlq purge --reason undecodable --until 2026-11-01 --yes
    """
    from telemetry_pipeline.ingest import dead_letters

    project, choice = find_project(), dead_letters.Choice(**filters, everything=everything)
    if choice.is_unlimited:
        raise click.UsageError("give a filter, or --all")
    if not yes:
        letters, held = dead_letters.purgeable(project, choice)
        if not sys.stdin.isatty():
            raise click.UsageError(f"would remove {letters:,} dead letters; say so with --yes")
        click.confirm(
            f"Remove {letters:,} dead letters for good ({held:,} more are being replayed)?",
            abort=True,
            err=True,
        )
    removed = dead_letters.purge(project, choice)
    _announcer(as_json)({"removed": removed}, f"removed {removed:,} dead letters")


@main.command("sql", epilog=EXIT_CODES)
@click.argument("statement", type=click.Choice(["parse", "judge", "repeats", "letters", "land"]))
@as_json
def show_sql(statement: str, as_json: bool) -> None:
    """Print a statement that ingest runs, compiled from catalog/ and telemetry.yaml.

    \b
    Example:
      telemetry sql judge
    """
    from telemetry_pipeline.catalog.reader import read_catalog
    from telemetry_pipeline.config import load_config
    from telemetry_pipeline.ingest.statements import compile_contract

    project: Project = find_project()
    contract = compile_contract(read_catalog(project.catalog_dir), load_config(project.config_file))
    text = {
        "parse": contract.parse_template("otlp_json"),
        "judge": contract.judge_sql(hashes_on_read=False),
        "repeats": contract.repeats_sql,
        "letters": contract.letters_sql(hashes_on_read=False),
        "land": contract.land_sql,
    }[statement]
    _announcer(as_json)({"statement": text, "contract_hash": contract.contract_hash}, text)


def _console(as_json: bool) -> Console:
    # With --json, standard output carries the JSON line and nothing else.
    return Console(stderr=as_json)


def _table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns, never cut: ids in it are to be copied."""
    lines = [list(rows[0]), *([_plain(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)


def _plain(value: Any) -> str:
    """A value for people and for JSON; the warehouse's times are UTC."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC).isoformat(timespec="seconds")
    return str(value)


def _announcer(as_json: bool) -> Callable[[dict[str, Any], str], None]:
    return lambda data, text: click.echo(json.dumps(data, default=str) if as_json else text)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
