"""The demo: the local stack, a seeded population's events, and what became of them."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from dagster._core.scheduler.instigation import TickStatus
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sensors.otel_file import otel_file_sensor
from sensors.source_runs import ACTIVE
from telemetry_pipeline.config import load_config
from telemetry_pipeline.dbt_runtime import ensure_manifest
from telemetry_pipeline.demo.emitter import emit
from telemetry_pipeline.demo.live import emit_live
from telemetry_pipeline.demo.results import print_results
from telemetry_pipeline.demo.totals import DemoTotals, collect
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.ingest.ledger import Ledger
from telemetry_pipeline.ingest.run import build_source
from telemetry_pipeline.paths import Project
from telemetry_pipeline.stack import (
    Stack,
    answers,
    dagster_environment,
    prepare_data_dir,
    require_free_port,
    start_dagster,
    start_dagster_daemon,
    start_warehouse,
)
from telemetry_pipeline.warehouse.client import connect

SETTLE_SECONDS = 600
LIVE_EVENTS_A_SECOND = 2.0
#: Events of the full demo; a smaller one has fewer people, not less busy ones.
FULL_SIZE = 200_000
#: A file is a slice here, and a slice has a fixed cost of a quarter of a second.
ROTATE_MEGABYTES = 24


class DemoError(TelemetryError):
    """The demo ran, but its figures do not agree or a run failed."""

    exit_code = 6


@dataclass(frozen=True)
class DemoOptions:
    """How the demo runs. `once`: to the end and out; otherwise until Ctrl-C."""

    once: bool = False
    dagster_port: int = 3000
    amplitude_port: int = 8091
    events: int = FULL_SIZE


def run_demo(project: Project, options: DemoOptions, console: Console) -> DemoTotals | None:
    """Run it. Returns the totals of a `once` run; raises TelemetryError with one clear line."""
    started_at, started = datetime.now(UTC), time.monotonic()
    load_config(project.config_file)
    prepare_data_dir(project)
    require_free_port(options.amplitude_port, "--amplitude-port")
    if not options.once:
        require_free_port(options.dagster_port, "--dagster-port")
    amplitude_url = f"http://127.0.0.1:{options.amplitude_port}"
    os.environ.update(_environment(project, amplitude_url))
    with ThreadPoolExecutor(1) as background, Stack(project) as stack:
        manifest = background.submit(ensure_manifest, project)
        _start_amplitude(stack, project, amplitude_url, options.amplitude_port)
        console.print(f"warehouse: {start_warehouse(stack)}")
        manifest.result()
        if options.once:
            start_dagster_daemon(stack)
        else:
            start_dagster(stack, options.dagster_port)
        emitted = _emit_history(project, options.events, console)
        _settle(stack, project, started_at, console)
        totals = collect(
            project,
            amplitude_url,
            emitted + _live_count(project),
            started_at,
            time.monotonic() - started,
        )
        print_results(project, totals, console)
        if options.once:
            return totals
        _stay(stack, project, options, amplitude_url, console)
    return None


def _environment(project: Project, amplitude_url: str) -> dict[str, str]:
    key_file = project.data_dir / "demo" / "amplitude.key"
    key_file.parent.mkdir(parents=True, exist_ok=True)
    if not key_file.exists():
        key_file.touch(mode=0o600)
        key_file.write_text(secrets.token_hex(16))
    return dagster_environment(project) | {
        "AMPLITUDE_ENABLED": "true",
        "AMPLITUDE_ENDPOINT": f"{amplitude_url}/2/httpapi",
        "AMPLITUDE_API_KEY": key_file.read_text(),
    }


def _start_amplitude(stack: Stack, project: Project, url: str, port: int) -> None:
    stack.start(
        "amplitude",
        [
            *(sys.executable, "-m", "telemetry_pipeline.demo.amplitude_server"),
            *("--port", str(port), "--state-dir", str(project.data_dir / "demo" / "amplitude")),
        ],
    )
    stack.wait_for("the Amplitude-shaped server", lambda: answers(f"{url}/received/summary"), 30)


def _emit_history(project: Project, events: int, console: Console) -> int:
    """Emit the population's 30 days once per .data/; returns how many records it emitted.

    They are written beside the sink and moved into it when they are complete, the note of their
    number first: an emission that was interrupted starts anew and leaves nothing half-known.
    """
    demo = project.data_dir / "demo"
    note, staging = demo / "emission.json", demo / "emission"
    if not note.exists():
        shutil.rmtree(staging, ignore_errors=True)
        key = read_key("edge", project.keys_dir)
        with _bar(console, "emitting events through the OpenTelemetry SDK", events) as progress:
            manifest = emit(
                staging,
                key.key_id,
                key.secret,
                datetime.now(UTC),
                events=events,
                users=max(60, events * 1500 // FULL_SIZE),
                organisations=max(8, events * 60 // FULL_SIZE),
                progress=progress,
                rotate_megabytes=ROTATE_MEGABYTES,
            )
        partial = note.with_suffix(".partial")
        partial.write_text(json.dumps({"emitted": manifest.emitted}))
        partial.replace(note)
    _move_into_sink(staging, project.sink_dir)
    return int(json.loads(note.read_text())["emitted"])


def _move_into_sink(staging: Path, sink: Path) -> None:
    if not staging.exists():
        return
    # The active file last: what was rotated before it is older.
    for file in sorted(
        staging.iterdir(), key=lambda path: (path.name == "events.jsonl", path.name)
    ):
        file.replace(sink / file.name)
    staging.rmdir()


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _settle(stack: Stack, project: Project, since: datetime, console: Console) -> None:
    """Wait until every byte of the sink has a result, no run is under way and a sensor looked."""
    config = load_config(project.config_file)
    sources = {name: build_source(project, config, name) for name in config.sources}
    with (
        closing(connect(project, role="reader")) as client,
        dg.DagsterInstance.get() as instance,
        _bar(console, "sensor, ingest, dbt and export (MB landed)", 1) as show,
    ):
        progress = _Progress()

        def settled() -> bool:
            waiting = sum(
                source.waiting(Ledger(client, name).positions()) for name, source in sources.items()
            )
            show(*progress.megabytes(waiting))
            runs = instance.get_run_records(limit=20)
            _raise_for_failure(project, runs, since)
            idle = not (
                waiting
                or any(record.dagster_run.status in ACTIVE for record in runs)
                or any(Ledger(client, name).open_claims() for name in sources)
                or (runs and runs[0].dagster_run.status is not dg.DagsterRunStatus.SUCCESS)
            )
            # Only a look of the sensor's own after that says that it will start nothing more.
            return progress.idle_since(idle) <= _last_skipped_tick(instance)

        stack.wait_for("ingest", settled, SETTLE_SECONDS)


class _Progress:
    """How much of the backlog is landed, and since when nothing is left to do."""

    def __init__(self) -> None:
        self._most = 0
        self._idle_since: float | None = None

    def megabytes(self, waiting: int) -> tuple[int, int]:
        self._most = max(self._most, waiting)
        return round((self._most - waiting) / 1e6), max(1, round(self._most / 1e6))

    def idle_since(self, idle: bool) -> float:
        if not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.time()
        return math.inf if self._idle_since is None else self._idle_since


def _raise_for_failure(project: Project, runs: Sequence[dg.RunRecord], since: datetime) -> None:
    for record in runs:
        run = record.dagster_run
        if run.status is dg.DagsterRunStatus.FAILURE and record.create_timestamp >= since:
            log = project.data_dir / "logs" / "dagster.log"
            raise DemoError(f"run {run.run_id} of {run.job_name} failed; see {log}")


def _last_skipped_tick(instance: dg.DagsterInstance) -> float:
    """When the sensor last found nothing to do, in seconds since 1970; 0 before its first look."""
    for state in instance.all_instigator_state():
        if state.instigator_name == otel_file_sensor.name:
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
            if ticks and ticks[0].status is TickStatus.SKIPPED:
                return ticks[0].timestamp
    return 0.0


def _live_count(project: Project) -> int:
    note = project.data_dir / "demo" / "live.json"
    return int(json.loads(note.read_text())["emitted"]) if note.exists() else 0


def _stay(
    stack: Stack, project: Project, options: DemoOptions, amplitude_url: str, console: Console
) -> None:
    """Go on emitting a trickle of fresh events until Ctrl-C."""
    console.print(f"\nDagster            http://127.0.0.1:{options.dagster_port}/asset-groups")
    console.print("Results            the tables above")
    console.print(f"Amplitude received {amplitude_url}/")
    console.print("\nFresh events keep arriving. Ctrl-C ends everything.")
    key = read_key("edge", project.keys_dir)
    before = _live_count(project)
    note = project.data_dir / "demo" / "live.json"

    interrupted = threading.Event()
    # The emitter is let finish its line: what it emitted must stay countable.
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda *_: interrupted.set())

    emitted = 0

    def stop() -> bool:
        nonlocal emitted
        stack.check()
        if interrupted.is_set():
            return True
        emitted += 1
        return False

    try:
        emit_live(
            project.sink_dir,
            key.key_id,
            key.secret,
            stop=stop,
            events_per_second=LIVE_EVENTS_A_SECOND,
        )
    finally:
        note.write_text(json.dumps({"emitted": before + emitted}))
    raise KeyboardInterrupt
