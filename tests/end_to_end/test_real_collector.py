"""OpenTelemetry SDK, the real Collector and ingest together: every event lands exactly once."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
from clickhouse_connect.driver.client import Client
from log_records import common
from services.collector import Collector, running_collector

from telemetry_pipeline.demo.behaviour import FRONT_END
from telemetry_pipeline.demo.otel import Telemetry
from telemetry_pipeline.demo.wire import Delivery
from telemetry_pipeline.ingest import run
from telemetry_pipeline.ingest.loader import IngestReport
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.otel_file import OtelFileSource

pytestmark = pytest.mark.needs("otelcol/otelcol")

BATCHES, EVENTS_A_BATCH = 120, 50
#: How every line begins.
REQUEST = b'{"resourceLogs":'


@dataclass
class Application:
    """An SDK that exports OTLP/JSON over HTTP and, as OTLP asks, repeats what got no answer."""

    url: str
    acknowledged: list[str] = field(default_factory=list)
    repeated: int = 0

    def emit(self, batches: int) -> None:
        telemetry = Telemetry(self._export)
        for _ in range(batches):
            now_ns = time.time_ns()
            ids = []
            for number in range(EVENTS_A_BATCH):
                attributes = common(user=number)
                ids.append(str(attributes["event.id"]))
                telemetry.emit(Delivery(now_ns, now_ns, "page_viewed", FRONT_END, attributes))
            telemetry.flush()
            self.acknowledged += ids

    def _export(self, request: bytes) -> None:
        ends = time.monotonic() + 60
        while True:
            try:
                answer = httpx.post(
                    self.url,
                    content=request,
                    headers={"content-type": "application/json"},
                    trust_env=False,
                )
                if answer.status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            assert time.monotonic() < ends, "the Collector takes nothing"
            self.repeated += 1
            time.sleep(0.05)


@pytest.fixture
def collector(project: Project, tmp_path: Path) -> Iterator[Collector]:
    """Writes to the project's sink, with the smallest rotation that the exporter knows."""
    exporter = {
        "path": str(project.sink_dir / "events.jsonl"),
        "format": "json",
        "rotation": {"max_megabytes": 1},
    }
    with running_collector(tmp_path, {"file": exporter}) as collector:
        yield collector


@dataclass
class Written:
    """The event ids in the sink's lines, read without ingest, and the lines nobody can read.

    The exporter writes a line and its end apart, and appends after a restart: a kill in between
    leaves a line that the next one joins. What was joined to it is whole.
    """

    ids: list[str] = field(default_factory=list)
    unreadable: list[bytes] = field(default_factory=list)

    def is_in_an_unreadable_line(self, event_id: str) -> bool:
        return any(event_id.encode() in line for line in self.unreadable)


def in_the_files(project: Project) -> Written:
    written = Written()
    for path in project.sink_dir.iterdir():
        for line in apart(path.read_bytes()):
            try:
                found = list(records(line)) if line else []
            except ValueError:
                written.unreadable.append(line)
                continue
            for record in found:
                values = {pair["key"]: pair["value"] for pair in record["attributes"]}
                written.ids.append(values["event.id"]["stringValue"])
    return written


def apart(content: bytes) -> Iterator[bytes]:
    """The lines of a file, and what was joined in one of them."""
    for line in content.split(b"\n"):
        first, *joined = line.split(REQUEST)
        yield from [first] if first else []
        yield from (REQUEST + rest for rest in joined)


def records(line: bytes) -> Iterator[dict[str, list[dict[str, dict[str, str]]]]]:
    for resource in json.loads(line)["resourceLogs"]:
        for scope in resource["scopeLogs"]:
            yield from scope["logRecords"]


def in_the_warehouse(client: Client) -> list[str]:
    rows = client.query("SELECT toString(event_id) FROM raw.product_telemetry_events").result_rows
    return [row[0] for row in rows]


def total(reports: list[IngestReport], figure: str) -> int:
    return sum(getattr(report, figure) for report in reports)


def test_ingest_keeps_up_with_a_collector_that_writes_and_rotates(
    client: Client, project: Project, collector: Collector
) -> None:
    application = Application(collector.logs_url)
    emitting = threading.Thread(target=application.emit, args=[BATCHES])
    reports = []

    emitting.start()
    while emitting.is_alive():
        reports.append(ingest(project, "app_events", f"run {len(reports)}"))
    emitting.join()
    reports.append(ingest(project, "app_events", "the last run"))

    events = BATCHES * EVENTS_A_BATCH
    assert len(list(project.sink_dir.iterdir())) > 2, "the Collector rotated its file"
    assert sum(report.received > 0 for report in reports) > 2, "ingest read while it was written"
    assert total(reports, "received") == total(reports, "accepted") == events
    assert [report.rejected for report in reports if report.rejected] == []
    assert sorted(in_the_warehouse(client)) == sorted(application.acknowledged)
    assert ingest(project, "app_events", "nothing is left").slices == 0


def test_a_collector_that_is_killed_and_started_again_loses_and_doubles_nothing(
    client: Client, project: Project, collector: Collector
) -> None:
    application = Application(collector.logs_url)
    emitting = threading.Thread(target=application.emit, args=[BATCHES])
    reports = []

    emitting.start()
    for kill in range(3):
        wait_for(lambda: len(application.acknowledged) > (kill + 1) * 1000)  # noqa: B023
        collector.kill()
        reports.append(ingest(project, "app_events", f"after kill {kill}"))
        collector.start()
    emitting.join()
    reports.append(ingest(project, "app_events", "the last run"))

    assert application.repeated > 0, "the Collector was away while the application sent"
    assert_all_accounted_for(client, project, application, reports)
    assert ingest(project, "app_events", "nothing is left").slices == 0


def test_of_a_line_joined_to_a_half_written_one_only_the_half_is_a_dead_letter(
    client: Client, project: Project, collector: Collector
) -> None:
    application = Application(collector.logs_url)
    application.emit(2)
    collector.kill()
    with (project.sink_dir / "events.jsonl").open("ab") as sink:
        sink.write(b'{"resourceLogs":[{"resource":{"attr')
    reports = [ingest(project, "app_events", "half a line is there")]
    collector.start()
    application.emit(2)
    reports.append(ingest(project, "app_events", "the last run"))

    assert len(in_the_files(project).unreadable) == 1
    assert_all_accounted_for(client, project, application, reports)
    assert len(in_the_warehouse(client)) == 4 * EVENTS_A_BATCH


def test_files_that_are_compressed_while_ingest_reads_are_read_once(
    client: Client, project: Project, collector: Collector
) -> None:
    """gzip and zstd themselves, on what the Collector rotated, read or not."""
    application = Application(collector.logs_url)
    reports = []
    for turn, command in enumerate((["gzip"], ["zstd", "-q", "--rm"], ["gzip"], [])):
        application.emit(BATCHES // 4)
        if turn % 2:
            reports.append(ingest(project, "app_events", f"turn {turn}"))
        rotated = sorted(project.sink_dir.glob("events-*.jsonl"))
        if command:
            subprocess.run([*command, *rotated], check=True)
    reports.append(ingest(project, "app_events", "the last run"))
    reports.append(ingest(project, "app_events", "what the ledger knows"))

    endings = {path.suffix for path in project.sink_dir.iterdir()}
    assert endings == {".jsonl", ".gz", ".zst"}
    events = BATCHES * EVENTS_A_BATCH
    assert total(reports, "received") == total(reports, "accepted") == events
    assert total(reports, "lost_slices") == 0
    assert sorted(in_the_warehouse(client)) == sorted(application.acknowledged)
    assert reports[-1].slices == reports[-1].waiting == 0


@pytest.mark.parametrize("setting", [{"compression": "zstd"}, {"format": "proto"}])
def test_what_a_collector_writes_as_messages_is_a_loss_with_its_reason(
    client: Client,
    project: Project,
    tmp_path: Path,
    setting: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = {"path": str(project.sink_dir / "events.jsonl")} | setting
    with running_collector(tmp_path, {"file": exporter}) as collector:
        Application(collector.logs_url).emit(2)
        wait_for(lambda: (project.sink_dir / "events.jsonl").stat().st_size > 1000)
        report = ingest(project, "app_events", "messages, not lines")

    assert (report.slices, report.lost_slices) == (0, 1)
    losses = client.query("SELECT reason FROM ops.source_losses").result_rows
    assert losses == [("length_prefixed_messages",)]
    assert "take `compression` and `format: proto` out of the Collector's file exporter" in (
        caplog.text
    )


def test_what_a_collector_truncates_before_it_was_read_is_a_loss(
    client: Client, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = {"path": str(project.sink_dir / "events.jsonl")}  # neither rotation nor append
    monkeypatch.setattr(run, "OtelFileSource", partial(OtelFileSource, slice_bytes=1))
    with running_collector(tmp_path, {"file": exporter}) as collector:
        application = Application(collector.logs_url)
        sink = project.sink_dir / "events.jsonl"
        application.emit(3)
        # Without rotation the exporter holds lines back for a second.
        wait_for(lambda: sink.read_bytes().count(b"\n") == 3)
        size = sink.stat().st_size
        first = ingest(project, "app_events", "reads one line of three", max_bytes=1)
        collector.stop()
        collector.start()
        application.emit(1)
        wait_for(lambda: sink.read_bytes().count(b"\n") == 1)
        last = ingest(project, "app_events", "the last run")

    assert (first.slices, first.received, last.received) == (1, EVENTS_A_BATCH, EVENTS_A_BATCH)
    assert last.lost_slices == 1
    (loss,) = client.query(
        "SELECT start_offset, end_offset, reason FROM ops.source_losses"
    ).result_rows
    assert loss == (first.bytes, size, "disappeared")
    assert len(in_the_warehouse(client)) == 2 * EVENTS_A_BATCH


def assert_all_accounted_for(
    client: Client, project: Project, application: Application, reports: list[IngestReport]
) -> None:
    """What was acknowledged is in the files, and what is in the files landed once."""
    written = in_the_files(project)
    missing = set(application.acknowledged) - set(written.ids)
    assert all(written.is_in_an_unreadable_line(event_id) for event_id in missing)
    assert total(reports, "received") == len(written.ids) + len(written.unreadable)
    assert total(reports, "lost_slices") == 0
    assert total(reports, "duplicates") == len(written.ids) - len(set(written.ids))
    rejected = sum(sum(report.rejected.values()) for report in reports)
    assert rejected == len(written.unreadable)
    assert sorted(in_the_warehouse(client)) == sorted(set(written.ids))


def wait_for(condition: Callable[[], bool], patience: float = 60) -> None:
    ends = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)
