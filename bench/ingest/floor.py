"""Path (d): the engine's floor, the two statements of floor.sql and nothing else."""

from __future__ import annotations

from pathlib import Path

from bench.ingest.dataset import Dataset
from bench.ingest.figures import Cost
from bench.ingest.meter import Meter
from bench.ingest.ours import STORAGE, Say
from bench.ingest.warehouse import BenchError, fresh_warehouse

FLOOR_SQL = Path(__file__).with_name("floor.sql")
_COPY = "raw.floor_rows"


def floor_statements(lines: str, rows: str, raw_copy: str) -> list[str]:
    """The statements with their places filled in; nothing else of the text changes."""
    text = FLOOR_SQL.read_text()
    for place, value in (("{lines}", lines), ("{rows}", rows), ("{raw_copy}", raw_copy)):
        text = text.replace(place, value)
    return [statement for statement in text.split(";") if _has_sql(statement)]


def run_floor(folder: Path, dataset: Dataset, rows_file: Path, config: str, say: Say) -> Cost:
    """Parse the same lines, then insert the rows that (a) made, in the same kind of warehouse."""
    with fresh_warehouse(folder, config) as warehouse:
        warehouse.client.command(f"CREATE TABLE {_COPY} AS {STORAGE}")
        parse, insert = floor_statements(
            lines=str(dataset.sink / "events*.jsonl"), rows=str(rows_file), raw_copy=_COPY
        )
        meter = Meter(warehouse, {})
        before = warehouse.cpu()
        parsed = int(str(warehouse.client.command(parse)))
        parse_cpu = warehouse.cpu() - before
        say(f"  {parsed:,} records parsed")
        warehouse.client.command(insert)
        seconds = meter.elapsed()
        insert_cpu = warehouse.cpu() - before - parse_cpu
        inserted = warehouse.count(_COPY)
        say(f"  {inserted:,} rows inserted")
        if {parsed, inserted} != {dataset.records}:
            raise BenchError(f"the floor parsed {parsed} records and inserted {inserted} rows")
        return meter.finish(
            records=dataset.records,
            rows=inserted,
            seconds=seconds,
            startup_cpu_s=0,
            notes={"parse_cpu_s": parse_cpu, "insert_cpu_s": insert_cpu},
        )


def _has_sql(statement: str) -> bool:
    return any(line.strip() and not line.startswith("--") for line in statement.splitlines())
