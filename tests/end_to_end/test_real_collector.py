"""OpenTelemetry SDK, the real Collector and ingest together: every event lands exactly once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from clickhouse_connect.driver.client import Client
from log_records import common
from services.collector import Collector, running_collector

from telemetry_pipeline.demo.behaviour import FRONT_END
from telemetry_pipeline.demo.otel import Telemetry
from telemetry_pipeline.demo.wire import Delivery
from telemetry_pipeline.ingest.loader import IngestReport
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project

pytestmark = pytest.mark.needs("otelcol/otelcol")

BATCHES, EVENTS_A_BATCH = 120, 50


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
    leaves a line that the next one joins.
    """

    ids: list[str] = field(default_factory=list)
    unreadable: list[bytes] = field(default_factory=list)

    def is_in_an_unreadable_line(self, event_id: str) -> bool:
        return any(event_id.encode() in line for line in self.unreadable)


def in_the_files(project: Project) -> Written:
    written = Written()
    for path in project.sink_dir.iterdir():
        for line in path.read_bytes().split(b"\n"):
            try:
                found = list(records(line)) if line else []
            except ValueError:
                written.unreadable.append(line)
                continue
            for record in found:
                values = {pair["key"]: pair["value"] for pair in record["attributes"]}
                written.ids.append(values["event.id"]["stringValue"])
    return written


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


def test_a_line_that_joins_a_half_written_one_waits_in_the_dead_letters(
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
    assert len(in_the_warehouse(client)) == 3 * EVENTS_A_BATCH


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
