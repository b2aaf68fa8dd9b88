"""Paths (a) and (b): this project's own ingest, whole, from files and from Kafka."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import yaml
from confluent_kafka import Producer
from services.broker import Broker

from bench.ingest.dataset import ACTIVE, Dataset, read_requests
from bench.ingest.figures import Cost
from bench.ingest.meter import Meter
from bench.ingest.processes import cpu_seconds, stop
from bench.ingest.warehouse import REPOSITORY, BenchError, Warehouse, fresh_warehouse

STORAGE = "raw.product_telemetry_events_storage"
_TOPIC = "bench"
Say = Callable[[str], None]


def run_file(
    folder: Path, sink: Path, records: int, say: Say, rows_file: Path | None = None
) -> Cost:
    """(a) The whole path from a sink's files. `rows_file`: where the finished rows are exported to
    as Native, after the measurement, for the floor."""
    config = _policy({"kind": "otel_file", "path": str(sink / ACTIVE)})
    with fresh_warehouse(folder, config) as warehouse:
        cost = _ingest(warehouse, records, say, broker=None)
        if rows_file is not None:
            _export_rows(warehouse, rows_file)
    return cost


def run_kafka(folder: Path, dataset: Dataset, say: Say) -> Cost:
    """(b) The whole path from a topic of OTLP protobuf requests, filled before the clock starts.

    The broker's CPU while it is read from is part of the sum, and given apart.
    """
    with _filled_broker(folder / "kafka", dataset, say) as (broker, started_cpu):
        source = {
            "kind": "kafka",
            "brokers": [broker.address],
            "topic": _TOPIC,
            "encoding": "otlp_proto",
        }
        with fresh_warehouse(folder / "ours", _policy(source)) as warehouse:
            return _ingest(warehouse, dataset.records, say, broker=(broker.pid, started_cpu))


def _policy(source: Mapping[str, object]) -> str:
    """The repository's telemetry.yaml with one source."""
    policy = yaml.safe_load((REPOSITORY / "telemetry.yaml").read_text())
    return yaml.safe_dump(policy | {"sources": {"records": source}}, sort_keys=False)


def _ingest(warehouse: Warehouse, records: int, say: Say, broker: tuple[int, float] | None) -> Cost:
    """Run ingest in a process of its own. `broker`: its pid and what its start-up cost."""
    command = [sys.executable, "-m", "bench.ingest.ingest_once", "--source", "records"]
    command += ["--root", str(warehouse.project.root)]
    command += ["--data-dir", str(warehouse.project.data_dir)]
    worker = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdin is not None and worker.stdout is not None
        _expect(worker.stdout, "ready")
        meter = Meter(warehouse, {"broker": broker[0]} if broker else {})
        worker.stdin.write("go\n")
        worker.stdin.flush()
        report = _follow(worker.stdout, records, say)
        seconds = meter.elapsed()
        if worker.wait(30) != 0:
            raise BenchError("the ingest process failed; its message stands above")
    finally:
        stop(worker)
    _check(warehouse, report, records)
    return meter.finish(
        records=records,
        rows=warehouse.count(STORAGE),
        seconds=seconds,
        startup_cpu_s=report["startup_cpu_s"] + (broker[1] if broker else 0),
        ended={"ingest": report["cpu_s"]},
        notes={"ingest_rss_mb": report["rss_mb"], "slices": report["slices"]},
    )


def _expect(output: IO[str], word: str) -> None:
    line = output.readline()
    if line.strip() != word:
        raise BenchError(f"the ingest process said {line!r} and not {word}")


def _follow(output: IO[str], records: int, say: Say) -> dict[str, Any]:
    """Pass its progress on; returns its last line."""
    said = 0
    for line in output:
        if not line.startswith("progress "):
            report: dict[str, Any] = json.loads(line)
            return report
        received = int(line.split()[1])
        if received - said >= records // 10:
            said = received
            say(f"  {received:,} of {records:,} records landed")
    raise BenchError("the ingest process ended early; its message stands above")


def _check(warehouse: Warehouse, report: Mapping[str, Any], records: int) -> None:
    """Every record was received and accepted: by the run's report, the ledger and the rows."""
    ledger = warehouse.client.query(
        "SELECT sum(received), sum(accepted) FROM ops.slice_results"
    ).result_rows[0]
    rows = warehouse.count(STORAGE)
    found = (report["received"], report["accepted"], *ledger, rows)
    if set(found) != {records} or report["waiting"] != 0:
        raise BenchError(
            f"{records} records were offered; received and accepted by the report {found[:2]}, by "
            f"the ledger {found[2:4]}, rows {rows}, still waiting {report['waiting']}"
        )


def _export_rows(warehouse: Warehouse, target: Path) -> None:
    address = warehouse.address
    with (
        httpx.stream(
            "POST",
            f"{address.scheme}://{address.host}:{address.port}/",
            params={"query": f"SELECT * FROM {STORAGE} FORMAT Native"},
            auth=(address.user, address.password),
            headers={"accept-encoding": "identity"},
            timeout=600,
            trust_env=False,
        ) as answer,
        target.open("wb") as file,
    ):
        if answer.status_code != 200:
            raise BenchError(f"the rows cannot be exported: {answer.read()[:500]!r}")
        for chunk in answer.iter_bytes():
            file.write(chunk)


@contextmanager
def _filled_broker(folder: Path, dataset: Dataset, say: Say) -> Iterator[tuple[Broker, float]]:
    """A broker whose topic holds every request as a message, and the CPU its start-up took."""
    folder.mkdir(parents=True)
    broker = Broker(folder)
    broker.format()
    broker.start()
    try:
        started_cpu = cpu_seconds(broker.pid)
        _fill(broker.address, dataset, say)
        yield broker, started_cpu
    finally:
        broker.stop()


def _fill(address: str, dataset: Dataset, say: Say) -> None:
    failed: list[str] = []

    def on_delivery(error: object, _message: object) -> None:
        if error is not None:
            failed.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": address,
            "acks": "all",
            "linger.ms": 5,
            "queue.buffering.max.kbytes": 65_536,
        }
    )
    messages = 0
    for request in read_requests(dataset.requests):
        while True:
            try:
                producer.produce(_TOPIC, request, on_delivery=on_delivery)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
        messages += 1
    left = producer.flush(60)
    if left or failed:
        raise BenchError(f"{left + len(failed)} messages did not reach the topic: {failed[:1]}")
    say(f"  topic filled: {messages:,} messages of OTLP protobuf")
