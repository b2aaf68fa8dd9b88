"""Ingest and the demo's emitter, written apart, agree on what becomes of every record."""

from __future__ import annotations

from datetime import UTC, datetime

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.demo.emitter import emit
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project


def test_an_emission_is_ingested_as_its_manifest_says(client: Client, project: Project) -> None:
    edge = read_key("edge", project.keys_dir)
    manifest = emit(
        project.sink_dir,
        edge.key_id,
        edge.secret,
        datetime.now(UTC),
        users=80,
        organisations=8,
        events=3000,
        rotate_megabytes=0.5,
    )

    report = ingest(project, "app_events", "test")

    assert report.received == manifest.emitted
    assert report.accepted == manifest.accepted
    assert report.duplicates == manifest.duplicates
    assert report.rejected == manifest.rejected
    assert report.dropped == manifest.dropped
    assert report.unknown_attributes == manifest.unknown_attributes
    assert (report.lost_slices, report.waiting) == (0, 0)
    assert report.slices > 4, "the sink was rotated"
    stored = client.query(
        "SELECT count(), uniqExact(event_id) FROM raw.product_telemetry_events"
    ).result_rows
    assert stored == [(manifest.accepted, manifest.accepted)]
    assert ingest(project, "app_events", "test").slices == 0
