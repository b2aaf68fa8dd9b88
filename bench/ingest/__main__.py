"""`make bench-ingest`: one run, every path over the same records, a table and a line of JSON.

Progress goes to stderr; stdout ends with the JSON. Exit code 1, and no JSON, when a part is missing
or a path did not do what it should. Missed bars are reported, not failed on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

# The tests know how a broker and a Collector are started: one way for both.
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from bench.ingest.dataset import make_dataset
from bench.ingest.figures import Cost, Trial, bars, summary, table
from bench.ingest.floor import run_floor
from bench.ingest.ours import run_file, run_kafka
from bench.ingest.parts import CACHE, fetch_rotel, fetch_services
from bench.ingest.peers import collector, rotel, run_peer
from bench.ingest.warehouse import REPOSITORY, BenchError
from telemetry_pipeline.errors import TelemetryError

TITLES = {
    "file": "(a) file source, whole path",
    "kafka": "(b) Kafka otlp_proto, whole path",
    "collector": "(c) Collector, clickhouseexporter",
    "rotel": "(c) rotel, ClickHouse exporter",
    "floor": "(d) floor: bare parse, Native insert",
}
_FEWEST_RECORDS = 10_000
#: From here on a tenth is some slices long, and the two figures of memory can be compared.
_COMPARABLE_RECORDS = 1_000_000
_BEGAN = time.monotonic()


def main() -> int:
    given = _arguments()
    # Every path gets a fresh embedded warehouse; a server of the caller's is not for measuring.
    os.environ.pop("CLICKHOUSE_URL", None)
    try:
        if {"kafka", "collector"} & set(given.only):
            fetch_services()
        agent = fetch_rotel() if "rotel" in given.only else Path()
        result = run(given, agent)
    except (BenchError, TelemetryError, AssertionError) as error:
        print(f"bench-ingest: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def run(given: argparse.Namespace, agent: Path) -> dict[str, object]:
    """Every path of `--only` in turn; returns what the last line says."""
    machine = {"cores": os.cpu_count(), "load_at_start": round(os.getloadavg()[0], 2)}
    dataset = make_dataset(
        given.cache,
        given.records,
        given.seed,
        say,
        request_records=given.request_records,
        rotate_mb=given.rotate_mb,
    )
    config = (REPOSITORY / "telemetry.yaml").read_text()
    work = given.cache / f"run-{os.getpid()}"
    rows_file = work / "rows.native"
    costs: dict[str, Cost] = {}
    trials: dict[str, list[Trial]] = {}
    work.mkdir(parents=True)
    try:
        say(f"(a) a tenth of the records: {dataset.records_tenth:,}")
        tenth = run_file(work / "tenth", dataset.sink_tenth, dataset.records_tenth, say)
        say(TITLES["file"])
        costs["file"] = run_file(work / "file", dataset.sink, given.records, say, rows_file)
        if "kafka" in given.only:
            say(TITLES["kafka"])
            costs["kafka"] = run_kafka(work / "kafka", dataset, say)
        for name, start in (("collector", collector), ("rotel", rotel(agent))):
            if name in given.only:
                say(TITLES[name])
                costs[name], trials[name] = run_peer(name, start, work / name, dataset, config, say)
        say(TITLES["floor"])
        costs["floor"] = run_floor(work / "floor", dataset, rows_file, config, say)
    finally:
        shutil.rmtree(work, ignore_errors=True)

    rss = [run.notes["ingest_rss_mb"] for run in (tenth, costs["file"])]
    figures = summary(costs, float(str(rss[0])), float(str(rss[1])))
    print(table(costs, TITLES))
    for name, tried in trials.items():
        for trial in tried:
            print(
                f"{name}, batches of {trial.batch_size:,}, {trial.cost.records:,} records: "
                f"{trial.cost.records_per_s:,.0f} records/s, {trial.cost.us_a_record:.2f} us/record"
            )
    for line in bars(figures):
        print(line)
    if given.records < _COMPARABLE_RECORDS:
        print(f"(a tenth of fewer than {_COMPARABLE_RECORDS:,} records is less than two slices)")
    return {
        "records": given.records,
        "seed": given.seed,
        "request_records": given.request_records,
        **figures,
        "paths": {name: cost.as_json() for name, cost in costs.items()},
        "trials": {
            name: {trial.batch_size: trial.cost.as_json() for trial in tried}
            for name, tried in trials.items()
        },
        "file_tenth": tenth.as_json(),
        "machine": machine | {"load_at_end": round(os.getloadavg()[0], 2)},
        "took_s": round(time.monotonic() - _BEGAN, 1),
    }


def say(text: str) -> None:
    """One line of progress, with the seconds since the beginning."""
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-ingest", description=__doc__)
    parser.add_argument("--records", type=int, default=5_000_000)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or 1))
    parser.add_argument(
        "--rotate-mb",
        type=int,
        default=0,
        help="rotate the sink's file at this size; 0: one file, so that memory must not follow it",
    )
    parser.add_argument(
        "--request-records",
        type=int,
        default=100,
        help="records an export request: a line, a Kafka message, what the peers receive",
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="where records are kept")
    paths = ("kafka", "collector", "rotel")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=paths,
        default=paths,
        help="beside (a) and (d), for a quick look; figures of what is left out are missing",
    )
    given = parser.parse_args()
    if given.records < _FEWEST_RECORDS:
        parser.error(f"--records must be {_FEWEST_RECORDS:,} or more")
    return given


if __name__ == "__main__":
    sys.exit(main())
