"""A sink's folder as the Collector fills it, and a ledger that remembers what was claimed."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import zstandard

from telemetry_pipeline.sources.base import Loss, Position, Slice, SliceData
from telemetry_pipeline.sources.compressed_files import Limits
from telemetry_pipeline.sources.otel_file import OtelFileSource

ROTATED = "events-2026-05-01T10-00-00.000-size.jsonl"
ROTATED_LATER = "events-2026-05-01T11-00-00.000-size.jsonl"
NOTHING = Position(0, hashlib.sha256(b"").hexdigest())


@dataclass
class Sink:
    """`claimed` holds every slice that was cut, `lost` every loss that was recorded."""

    folder: Path
    slice_bytes: int = 40
    limits: Limits | None = None
    max_line_bytes: int = 10_000
    positions: dict[tuple[str, int], Position] = field(default_factory=dict)
    claimed: list[SliceData] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)

    @property
    def active(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def source(self) -> OtelFileSource:
        return OtelFileSource(
            "app",
            self.active,
            slice_bytes=self.slice_bytes,
            max_line_bytes=self.max_line_bytes,
            limits=self.limits,
        )

    @property
    def waiting(self) -> int:
        return self.source.waiting(self.positions)

    def write(self, data: bytes, name: str = "events.jsonl") -> None:
        with (self.folder / name).open("ab") as file:
            file.write(data)

    def rotate(self, name: str = ROTATED) -> None:
        self.active.rename(self.folder / name)

    def compress(self, name: str = ROTATED, ending: str = ".gz", *, keep: bool = False) -> Path:
        """As gzip and zstd do it: the archive is whole before the file goes."""
        path = self.folder / name
        data = path.read_bytes()
        archive = path.with_name(name + ending)
        archive.write_bytes(gzip.compress(data) if ending == ".gz" else zstandard.compress(data))
        if not keep:
            path.unlink()
        return archive

    def age(self, path: Path, seconds: float = 3600) -> None:
        """Nobody wrote to the file for so long."""
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))

    def read(self, meanwhile: Callable[[], None] | None = None) -> bytes:
        """Claim all that is new; `meanwhile` happens after the first slice."""
        new = []
        for cut in self.source.read_new(self.positions):
            new.append(cut)
            self._claim(cut)
            if meanwhile is not None:
                meanwhile()
                meanwhile = None
        return b"".join(cut.data for cut in new)

    def run(self, most_slices: int | None = None) -> bytes:
        """What a loader does: note how far all reaches, record losses, then claim what is new."""
        known = dict(self.positions)
        self.note_reach(self.source.reach(known))
        self.record_losses(self.source.losses(known))
        new = []
        for cut in self.source.read_new(self.positions):
            if most_slices is not None and len(new) >= most_slices:
                break
            self._claim(cut)
            new.append(cut)
        return b"".join(cut.data for cut in new)

    def note_reach(self, reach: Mapping[tuple[str, int], int]) -> None:
        for key, end in reach.items():
            known = self.positions.get(key, NOTHING)
            if key not in self.positions or end > max(known.seen_end, known.end):
                self.positions[key] = replace(known, seen_end=max(end, known.seen_end))

    def record_losses(self, losses: list[Loss]) -> None:
        for loss in losses:
            key = (loss.slice.partition, loss.slice.epoch)
            known = self.positions.get(key, NOTHING)
            lost_end = max(known.lost_end, loss.slice.end)
            self.positions[key] = replace(known, lost_end=lost_end)
        self.lost += losses

    def _claim(self, cut: SliceData) -> None:
        key = (cut.slice.partition, cut.slice.epoch)
        known = self.positions.get(key, NOTHING)
        assert cut.slice.start == known.end, "a slice begins where the last one ended"
        assert cut.slice.end - cut.slice.start == len(cut.data)
        self.positions[key] = replace(known, end=cut.slice.end, tail_sha256=cut.tail_sha256)
        self.claimed.append(cut)

    def read_again(self, wanted: Slice) -> bytes | None:
        return self.source.read_again(wanted, self.positions)


def lines(first: int, last: int) -> bytes:
    return b"".join(b'{"line": %d}\n' % number for number in range(first, last))
