"""Path (c): the exporters that people use, each into a warehouse of the same kind.

Both get the same OTLP protobuf requests over HTTP on several connections, write uncompressed (it
is the cheapest on one machine) and wait for their inserts, so that what they acknowledge is there.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from services.collector import Collector
from services.process import Service, accepts, free_port

from bench.ingest.dataset import Dataset
from bench.ingest.figures import Cost, Trial, fastest
from bench.ingest.meter import Meter
from bench.ingest.ours import Say
from bench.ingest.processes import cpu_seconds, peak_rss_mb, stop
from bench.ingest.warehouse import REPOSITORY, BenchError, Warehouse, fresh_warehouse

#: Records an insert. The warehouse's own advice is 10,000 and more; each divides the samples.
BATCH_SIZES = (10_000, 25_000, 100_000)
#: An unfinished batch is written after this long: longer than any of them takes to fill.
_FLUSH_SECONDS = 5
_CONNECTIONS = 4
_TABLE = "otel.otel_logs"
_SAY_SECONDS = 5
#: No new row for this long after the last was sent: the rest is lost.
_STALLED_SECONDS = 20


class Peer(Protocol):
    """A running collector that takes OTLP/HTTP at `logs_url`."""

    logs_url: str

    @property
    def pid(self) -> int: ...


#: Starts a peer in a folder, with a batch size, for a warehouse.
Start = Callable[[Path, Warehouse, int], AbstractContextManager[Peer]]


def run_peer(
    name: str, start: Start, folder: Path, dataset: Dataset, config: str, say: Say
) -> tuple[Cost, list[Trial]]:
    """Every batch size on a sample, then all records at the fastest of them."""
    sample = min(dataset.records, max(dataset.records // 10, max(BATCH_SIZES)))
    trials = []
    for batch_size in BATCH_SIZES:
        cost = _run(start, folder, dataset, sample, batch_size, config, say)
        trials.append(Trial(batch_size, cost))
        say(
            f"  {name}, batches of {batch_size:,}: {cost.records_per_s:,.0f} records/s, "
            f"{cost.us_a_record:.1f} us a record"
        )
    chosen = fastest(trials).batch_size
    say(f"  {name}: all records in batches of {chosen:,}")
    return _run(start, folder, dataset, dataset.records, chosen, config, say), trials


@contextmanager
def collector(folder: Path, warehouse: Warehouse, batch_size: int) -> Iterator[Peer]:
    """The OpenTelemetry Collector with its clickhouseexporter, which makes its own tables."""
    address = warehouse.address
    exporter = {
        "endpoint": f"{address.scheme}://{address.host}:{address.port}",
        "username": address.user,
        "password": address.password,
        "database": "otel",
        "compress": "none",
        "async_insert": False,
        "timeout": "120s",
        "sending_queue": {
            "sizer": "items",
            "queue_size": 4 * max(BATCH_SIZES),
            "block_on_overflow": True,
            "batch": {
                "flush_timeout": f"{_FLUSH_SECONDS}s",
                "min_size": batch_size,
                "max_size": batch_size,
            },
        },
    }
    service = Collector(folder, {"clickhouse": exporter})
    service.start()
    try:
        yield service
    finally:
        service.stop()


class Rotel(Service):
    """rotel's agent with its ClickHouse exporter."""

    def __init__(self, agent: Path, folder: Path, warehouse: Warehouse, batch_size: int) -> None:
        port, grpc = free_port(), free_port()
        address = warehouse.address
        self.logs_url = f"http://127.0.0.1:{port}/v1/logs"
        command = [str(agent), "start", "--exporter", "clickhouse"]
        command += ["--otlp-http-endpoint", f"127.0.0.1:{port}"]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
        command += ["--batch-max-size", str(batch_size), "--batch-timeout", f"{_FLUSH_SECONDS}s"]
        exporter = {
            "ENDPOINT": f"{address.scheme}://{address.host}:{address.port}",
            "DATABASE": "otel",
            "USER": address.user,
            "PASSWORD": address.password,
            "COMPRESSION": "none",
            "ASYNC_INSERT": "false",
        }
        super().__init__(
            command,
            folder / "rotel.log",
            lambda: accepts(port),
            {f"ROTEL_CLICKHOUSE_EXPORTER_{name}": value for name, value in exporter.items()},
        )


def rotel(agent: Path) -> Start:
    """A way to start the agent that stands at `agent`."""

    @contextmanager
    def start(folder: Path, warehouse: Warehouse, batch_size: int) -> Iterator[Peer]:
        warehouse.client.command("CREATE DATABASE otel")
        warehouse.client.command(Path(__file__).with_name("rotel_logs.sql").read_text())
        service = Rotel(agent, folder, warehouse, batch_size)
        service.start()
        try:
            yield service
        finally:
            service.stop()

    return start


def _run(
    start: Start,
    folder: Path,
    dataset: Dataset,
    records: int,
    batch_size: int,
    config: str,
    say: Say,
) -> Cost:
    with fresh_warehouse(folder, config) as warehouse, start(folder, warehouse, batch_size) as peer:
        started_cpu = cpu_seconds(peer.pid)
        meter = Meter(warehouse, {"peer": peer.pid})
        _send(peer.logs_url, dataset, records, say)
        rows, seconds = _wait_for_rows(warehouse, meter, records)
        if rows != records:
            say(f"  {records - rows:,} of {records:,} records never arrived")
        cost = meter.finish(
            records=records,
            rows=rows,
            seconds=seconds,
            startup_cpu_s=started_cpu,
        )
        # Asked after the measurement: the answer costs the warehouse something.
        notes = {
            "batch_size": batch_size,
            "peer_rss_mb": peak_rss_mb(peer.pid),
            "rows_without_service": _rows_without_service(warehouse),
        }
    return replace(cost, notes=notes)


def _send(url: str, dataset: Dataset, records: int, say: Say) -> None:
    requests = -(-records // dataset.request_records)
    command = [sys.executable, "-m", "bench.ingest.sender", "--url", url]
    command += ["--file", str(dataset.requests), "--requests", str(requests)]
    command += ["--connections", str(_CONNECTIONS)]
    sender = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    said = ""
    quiet_until = time.monotonic() + _SAY_SECONDS
    try:
        assert sender.stdout is not None
        for line in sender.stdout:
            said = line.strip()
            if said.startswith("progress ") and time.monotonic() > quiet_until:
                quiet_until = time.monotonic() + _SAY_SECONDS
                taken = int(said.split()[1]) * dataset.request_records
                say(f"  {taken:,} of {records:,} records taken by the receiver")
        sender.wait()
    finally:
        stop(sender)
    if sender.returncode != 0 or said != str(requests):
        raise BenchError(f"of {requests} requests {said or 'none'} were taken")


def _wait_for_rows(warehouse: Warehouse, meter: Meter, records: int) -> tuple[int, float]:
    """The rows that arrived, and how long after the beginning the last of them did."""
    rows, seconds = warehouse.count(_TABLE), meter.elapsed()
    changed = time.monotonic()
    while rows < records and time.monotonic() - changed < _STALLED_SECONDS:
        time.sleep(0.25)
        now = warehouse.count(_TABLE)
        if now != rows:
            rows, seconds, changed = now, meter.elapsed(), time.monotonic()
    return rows, seconds


def _rows_without_service(warehouse: Warehouse) -> int:
    """Records whose resource attributes were lost on the way: all were sent with a service."""
    return int(
        warehouse.client.query(f"SELECT countIf(ServiceName = '') FROM {_TABLE}").result_rows[0][0]
    )
