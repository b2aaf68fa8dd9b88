"""Emits the demo's events through an OpenTelemetry SDK into a Collector-like file sink."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from telemetry_pipeline.demo.behaviour import occurrences
from telemetry_pipeline.demo.imperfections import (
    Parcel,
    Tally,
    broken_lines,
    conflicting,
    defective,
    delivery_time,
    with_repeats,
)
from telemetry_pipeline.demo.live import emit_live
from telemetry_pipeline.demo.otel import Telemetry
from telemetry_pipeline.demo.population import Population, plan_population, window_until
from telemetry_pipeline.demo.sink import FileSink
from telemetry_pipeline.demo.wire import EdgeIds, RawLine, deliver

__all__ = ["EmissionManifest", "emit", "emit_live"]

_RECORDS_A_LINE = 300


@dataclass(frozen=True)
class EmissionManifest:
    """What was emitted and what must become of it. A line without records counts as 1 emitted.

    emitted == accepted + duplicates + sum(rejected.values()) + sum(dropped.values()); the keys of
    `rejected` and `dropped` are the reasons of ingest. `late` of the accepted records reached the
    sink at least an hour after they happened; the accepted ones carry `unknown_attributes`
    attributes that the catalogue does not know. No `canaries` may be found in the warehouse.
    `kinds` counts the deliberate defects by what was done, beneath the level of reasons.
    """

    emitted: int
    accepted: int
    duplicates: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    late: int
    unknown_attributes: int
    canaries: tuple[str, ...]
    kinds: dict[str, int]


def emit(
    sink_dir: Path,
    edge_key_id: str,
    edge_key: bytes,
    now: datetime,
    *,
    seed: int = 7,
    users: int = 1500,
    organisations: int = 60,
    events: int = 200_000,
    days: int = 30,
    progress: Callable[[int, int], None] | None = None,
    rotate_megabytes: float = 8,
) -> EmissionManifest:
    """Append about `events` good events of the `days` up to `now`, and the bad ones, to the sink.

    The same arguments give the same bytes. `progress` is told (records written, records in all).
    `now` must be timezone-aware; ingest judges age by its own clock, so it should be the present.
    Needs at least some 500 events, or there is nothing to spoil.
    """
    organisations = min(organisations, users)
    population = plan_population(seed, users, organisations, events, window_until(now, days))
    tally = Tally()
    parcels = _parcels(population, EdgeIds(edge_key_id, edge_key), tally)
    with FileSink(sink_dir, rotate_megabytes) as sink, _out_of_the_collectors_sight():
        _send(parcels, sink, progress)
    return _manifest(tally, emitted=len(parcels))


def _parcels(population: Population, edge_ids: EdgeIds, tally: Tally) -> list[Parcel]:
    """Everything to send, in the order in which it reaches the sink."""
    now_ns = population.window.end_ms * 1_000_000
    rng = Random(f"{population.seed}/imperfections")
    good = [
        deliver(occurrence, edge_ids, delivery_time(rng, occurrence.time_ns, now_ns, tally))
        for occurrence in occurrences(population)
    ]
    parcels = with_repeats(rng, good, now_ns, tally)
    parcels += defective(rng, good, tally)
    parcels += conflicting(rng, good, now_ns, tally)
    parcels += broken_lines(rng, good, tally)
    parcels.sort(key=lambda parcel: parcel.delivered_ns)
    return parcels


def _send(
    parcels: list[Parcel], sink: FileSink, progress: Callable[[int, int], None] | None
) -> None:
    """Write the parcels, each batch of records as one line."""
    lines: list[bytes] = []
    telemetry = Telemetry(lines.append)
    done = 0
    for batch in _batches(parcels):
        for parcel in batch:
            if isinstance(parcel, RawLine):
                lines.append(parcel.data)
            else:
                telemetry.emit(parcel)
        telemetry.flush()
        at = datetime.fromtimestamp(batch[-1].delivered_ns / 1e9, UTC)
        for line in lines:
            sink.write(line, at)
        lines.clear()
        done += len(batch)
        if progress is not None:
            progress(done, len(parcels))


def _batches(parcels: list[Parcel]) -> Iterator[list[Parcel]]:
    """Runs of at most 300 log records, and each raw line by itself, in the order given."""
    batch: list[Parcel] = []
    for parcel in parcels:
        is_raw = isinstance(parcel, RawLine)
        if batch and (is_raw or len(batch) == _RECORDS_A_LINE):
            yield batch
            batch = []
        if is_raw:
            yield [parcel]
        else:
            batch.append(parcel)
    if batch:
        yield batch


@contextmanager
def _out_of_the_collectors_sight() -> Iterator[None]:
    """Everything allocated so far is not looked at by the garbage collector.

    Hundreds of thousands of records live until the end, while encoding makes millions of
    short-lived objects: walking the former for each batch of the latter doubles the time.
    """
    if gc.get_freeze_count():  # the caller has its own arrangement
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _manifest(tally: Tally, emitted: int) -> EmissionManifest:
    return EmissionManifest(
        emitted=emitted,
        accepted=tally.accepted,
        duplicates=tally.duplicates,
        rejected=dict(tally.rejected),
        dropped=dict(tally.dropped),
        late=tally.late,
        unknown_attributes=tally.unknown_attributes,
        canaries=tuple(tally.canaries),
        kinds=dict(tally.kinds),
    )
