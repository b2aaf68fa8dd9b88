"""The demo's results as plain tables in the terminal."""

from __future__ import annotations

from contextlib import closing
from importlib import resources

from rich import box
from rich.console import Console
from rich.table import Table

from telemetry_pipeline.demo.totals import DemoTotals
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import connect

QUESTIONS = {
    "active_users.sql": "How many people used the product?",
    "adoption.sql": "Who adopts the two features that a front end cannot see?",
    "retention.sql": "Do they come back to them?",
    "conversion.sql": "Do trials convert?",
}


def print_results(project: Project, totals: DemoTotals, console: Console) -> None:
    """Print what was received and what became of it, the marts, and four answers."""
    console.print(_conservation(totals))
    console.print(_marts(totals))
    with closing(connect(project, role="reader")) as client:
        for name, question in QUESTIONS.items():
            statement = resources.files("telemetry_pipeline.demo") / "statements" / name
            answer = client.query(statement.read_text(encoding="utf-8"))
            table = _table(question, *answer.column_names)
            for row in answer.result_rows:
                table.add_row(*("" if value is None else str(value) for value in row))
            console.print(table)
    for problem in totals.problems:
        console.print(f"[red]{problem}[/red]")


def _conservation(totals: DemoTotals) -> Table:
    table = _table("Every record is accounted for", "record", "records")
    table.add_row("emitted", f"{totals.emitted:,}")
    table.add_row("received", f"{totals.received:,}")
    table.add_section()
    table.add_row("accepted", f"{totals.accepted:,}")
    table.add_row("arrived twice, counted once", f"{totals.duplicates:,}")
    for verdict, reasons in (("rejected", totals.rejected), ("dropped", totals.dropped)):
        for reason, records in sorted(reasons.items()):
            table.add_row(f"{verdict}: {reason}", f"{records:,}")
    return table


def _marts(totals: DemoTotals) -> Table:
    table = _table("Marts", "mart", "rows")
    for name, rows in totals.marts.items():
        table.add_row(name, f"{rows:,}")
    table.add_section()
    table.add_row("asset checks passed", str(totals.checks["passed"]))
    table.add_row("asset checks failed", str(totals.checks["failed"]))
    table.add_row(
        "events at Amplitude", f"{totals.amplitude_events:,} of {totals.amplitude_due:,} due"
    )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table
