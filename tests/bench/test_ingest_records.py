"""The benchmark's records: seeded, the same in both encodings, and what the catalogue wants."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fresh import REPOSITORY
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from bench.ingest.dataset import Dataset, make_dataset, read_requests
from bench.ingest.encode import batches
from bench.ingest.population import EVENT_NAMES, ORGANISATIONS, USERS, WINDOW_MS, populate
from telemetry_pipeline.catalog.reader import read_catalog
from telemetry_pipeline.identity.edge import edge_id
from telemetry_pipeline.sources.base import varint

END_MS = 1_790_000_000_000
#: (time, observed time, severity, name, service, ((key, kind of value, value), ...))
Record = tuple[int, int, int, str, str, tuple[tuple[str, str, Any], ...]]


def made(cache: Path, records: int = 5_000, seed: int = 1, rotate_mb: int = 0) -> Dataset:
    return make_dataset(cache, records, seed, lambda _text: None, rotate_mb=rotate_mb)


def from_lines(text: str) -> Iterator[Record]:
    for line in text.splitlines():
        for resource in json.loads(line)["resourceLogs"]:
            (service,) = resource["resource"]["attributes"]
            for entry in resource["scopeLogs"][0]["logRecords"]:
                attributes = []
                for pair in entry["attributes"]:
                    ((kind, value),) = pair["value"].items()
                    is_int = kind == "intValue"
                    attributes.append((pair["key"], kind, int(value) if is_int else value))
                yield (
                    int(entry["timeUnixNano"]),
                    int(entry["observedTimeUnixNano"]),
                    entry["severityNumber"],
                    entry["eventName"],
                    service["value"]["stringValue"],
                    tuple(attributes),
                )


def from_requests(messages: Iterator[bytes]) -> Iterator[Record]:
    for message in messages:
        for resource in ExportLogsServiceRequest.FromString(message).resource_logs:
            (service,) = resource.resource.attributes
            for entry in resource.scope_logs[0].log_records:
                yield (
                    entry.time_unix_nano,
                    entry.observed_time_unix_nano,
                    int(entry.severity_number),
                    entry.event_name,
                    service.value.string_value,
                    tuple((pair.key, *valued(pair.value)) for pair in entry.attributes),
                )


def valued(value: AnyValue) -> tuple[str, Any]:
    field = value.WhichOneof("value")
    assert field is not None
    return field.replace("_value", "Value"), getattr(value, field)


def test_a_seed_gives_the_same_bytes_and_another_seed_gives_others() -> None:
    def first(seed: int, encoding: str) -> bytes:
        return next(batches(populate(2_000, seed, END_MS), encoding, seed, 1_000))[0]

    for encoding in ("json", "proto"):
        assert first(7, encoding) == first(7, encoding)
        assert first(7, encoding) != first(8, encoding)


def test_json_and_protobuf_hold_the_same_records(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    lines = list(from_lines((dataset.sink / "events.jsonl").read_text()))
    requests = list(from_requests(read_requests(dataset.requests)))

    assert len(lines) == 5_000
    assert lines == requests


def test_protobuf_fields_stand_in_the_order_an_encoder_writes_them() -> None:
    """Encoding what was decoded gives the same bytes."""
    message, _ = next(batches(populate(1_000, 1, END_MS), "proto", 1, 1_000))
    decoded = ExportLogsServiceRequest.FromString(message)
    assert decoded.SerializeToString(deterministic=True) == message


def test_every_record_has_eight_different_attributes_and_an_id_of_its_own(tmp_path: Path) -> None:
    records = list(from_lines((made(tmp_path).sink / "events.jsonl").read_text()))

    assert {len({key for key, _, _ in record[5]}) for record in records} == {8}
    ids = [value for record in records for key, _, value in record[5] if key == "event.id"]
    assert len(set(ids)) == len(records)
    like = edge_id("1", b"k", "user", "x")
    for record in records:
        edges = [value for key, _, value in record[5] if key in ("organisation.id", "session.id")]
        assert all(len(edge) == len(like) and edge.startswith("e1_") for edge in edges)


def test_the_mix_has_every_event_of_the_catalogue() -> None:
    catalog = read_catalog(REPOSITORY / "catalog")
    assert sorted(EVENT_NAMES) == sorted(event.name for event in catalog.events)


def test_a_population_is_as_varied_as_a_product_and_lies_within_two_days() -> None:
    population = populate(200_000, 1, END_MS)

    per_session = Counter(population.session.tolist())
    assert 19 < np.mean(list(per_session.values())) < 21
    # 10,000 sessions meet three quarters of people who are not equally busy, and all organisations.
    assert 0.75 * USERS < len(set(population.user.tolist())) < 0.8 * USERS
    assert len(set(population.organisation.tolist())) == ORGANISATIONS
    assert population.time_ns.min() >= (END_MS - WINDOW_MS) * 1_000_000
    assert population.observed_ns.max() < END_MS * 1_000_000
    # Sessions overlap: neighbours in the stream are different people.
    assert (np.diff(population.session) != 0).mean() > 0.9


def test_the_tenth_is_the_beginning_of_the_whole(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    whole = (dataset.sink / "events.jsonl").read_bytes()
    tenth = (dataset.sink_tenth / "events.jsonl").read_bytes()

    assert whole.startswith(tenth)
    assert tenth.count(b"\n") * dataset.request_records == dataset.records_tenth == 500


def test_rotation_changes_the_files_and_no_byte(tmp_path: Path) -> None:
    whole = made(tmp_path / "one", 5_000)
    rotated = made(tmp_path / "many", 5_000, rotate_mb=1)

    files = [*sorted(rotated.sink.glob("events-*-size.jsonl")), rotated.sink / "events.jsonl"]
    assert len(files) >= 4
    assert all(file.stat().st_size <= 1_000_000 for file in files)
    # Times follow the clock's hour, which may pass between the two.
    joined = b"".join(file.read_bytes() for file in files)
    assert len(joined) == (whole.sink / "events.jsonl").stat().st_size
    assert joined.count(b"\n") * whole.request_records == 5_000


def test_records_are_kept_until_their_recipe_or_their_day_is_another(tmp_path: Path) -> None:
    dataset = made(tmp_path, 1_000)
    mark = dataset.sink / "mark"
    mark.touch()
    made(tmp_path, 1_000)
    assert mark.exists(), "the same recipe: nothing is made again"

    made(tmp_path, 1_000, rotate_mb=1)
    assert not mark.exists()

    mark.touch()
    stamp = dataset.folder / "made.json"
    recipe = json.loads(stamp.read_text())
    stamp.write_text(json.dumps(recipe | {"end_ms": recipe["end_ms"] - 25 * 3_600_000}))
    made(tmp_path, 1_000, rotate_mb=1)
    assert not mark.exists(), "two days ago is no longer the last two days"


@pytest.mark.parametrize(
    ("number", "text"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")]
)
def test_lengths_are_written_as_protobuf_does(number: int, text: bytes) -> None:
    assert varint(number) == text
