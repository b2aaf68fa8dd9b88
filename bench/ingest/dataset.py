"""The records on disk: made once for a seed and a number, and made anew when they are a day old."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.ingest.encode import batches
from bench.ingest.population import Population, populate
from telemetry_pipeline.sources.base import varint

#: Raised whenever the same arguments give other bytes than before.
VERSION = 2
ACTIVE = "events.jsonl"
_MAX_AGE_MS = 24 * 3600 * 1000
_HOUR_MS = 3600 * 1000


@dataclass(frozen=True)
class Dataset:
    """One set of export requests in every form that a path of the benchmark reads.

    `sink` and `sink_tenth` hold the Collector's file, one request a line (all of them, and the
    first tenth); `requests` holds the same as OTLP protobuf, each behind its length as a varint.
    `request_records`: how many records a request holds.
    """

    folder: Path
    records: int
    request_records: int

    @property
    def records_tenth(self) -> int:
        """Of whole requests."""
        return max(1, self.records // 10 // self.request_records) * self.request_records

    @property
    def sink(self) -> Path:
        return self.folder / "sink"

    @property
    def sink_tenth(self) -> Path:
        return self.folder / "sink_tenth"

    @property
    def requests(self) -> Path:
        return self.folder / "requests.bin"


def make_dataset(
    cache: Path,
    records: int,
    seed: int,
    say: Callable[[str], None],
    *,
    request_records: int = 100,
    rotate_mb: int = 0,
) -> Dataset:
    """The dataset in `cache`, made if it is not there or its times are no longer of these days."""
    folder = cache / f"{seed}-{records}"
    dataset = Dataset(folder, records, request_records)
    now_ms = time.time_ns() // 1_000_000
    recipe = {"version": VERSION, "rotate_mb": rotate_mb, "request_records": request_records}
    stamp = folder / "made.json"
    if stamp.exists():
        made = json.loads(stamp.read_text())
        end_ms = made.pop("end_ms")
        if made == recipe and now_ms - end_ms < _MAX_AGE_MS:
            return dataset
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    end_ms = now_ms // _HOUR_MS * _HOUR_MS
    population = populate(records, seed, end_ms)
    _write_lines(population, seed, dataset, rotate_mb * 1_000_000, say)
    _write_requests(population, seed, dataset, say)
    stamp.write_text(json.dumps(recipe | {"end_ms": end_ms}))
    say(f"made {records:,} records in {time.monotonic() - began:.0f} s")
    return dataset


def read_requests(path: Path) -> Iterator[bytes]:
    """The messages of a file of requests, in order."""
    with path.open("rb") as file:
        while first := file.read(1):
            length = shift = 0
            byte = first[0]
            while byte & 0x80:
                length |= (byte & 0x7F) << shift
                shift += 7
                byte = file.read(1)[0]
            length |= byte << shift
            yield file.read(length)


def _write_lines(
    population: Population, seed: int, dataset: Dataset, most: int, say: Callable[[str], None]
) -> None:
    """Both sinks. A file that would grow past `most` bytes (0: never) is renamed as the
    Collector's file exporter does, and the next one begins."""
    sinks = [_Sink(dataset.sink, most), _Sink(dataset.sink_tenth, most)]
    written = 0
    for line, records in batches(population, "json", seed, dataset.request_records):
        sinks[0].write(line)
        if written < dataset.records_tenth:
            sinks[1].write(line)
        written += records
        if written % 1_000_000 < records:
            say(f"OTLP/JSON lines: {written:,} of {dataset.records:,} records")
    for sink in sinks:
        sink.close()


def _write_requests(
    population: Population, seed: int, dataset: Dataset, say: Callable[[str], None]
) -> None:
    written = 0
    with dataset.requests.open("wb") as file:
        for request, records in batches(population, "proto", seed, dataset.request_records):
            file.write(varint(len(request)))
            file.write(request)
            written += records
            if written % 1_000_000 < records:
                say(f"OTLP protobuf requests: {written:,} of {dataset.records:,} records")


class _Sink:
    def __init__(self, folder: Path, most: int) -> None:
        folder.mkdir()
        self._folder = folder
        self._most = most
        self._rotations = 0
        self._open()

    def write(self, line: bytes) -> None:
        if self._most and self._size and self._size + len(line) + 1 > self._most:
            self.close()
            second, milli = divmod(self._rotations, 1000)
            rotated = f"events-2026-01-01T00-00-{second:02}.{milli:03}-size.jsonl"
            (self._folder / ACTIVE).rename(self._folder / rotated)
            self._rotations += 1
            self._open()
        self._file.write(line)
        self._file.write(b"\n")
        self._size += len(line) + 1

    def close(self) -> None:
        self._file.close()

    def _open(self) -> None:
        self._file = (self._folder / ACTIVE).open("wb")
        self._size = 0
