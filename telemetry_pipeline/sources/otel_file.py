"""The OpenTelemetry Collector's rotated OTLP/JSON files.

A file is known by its content, not by its name or inode: its partition is the hash of its first
record, and a file continues an epoch of that partition when the bytes before the ledger's end
hash as they did when they were claimed. So a rename (rotation) changes nothing, and a file that
was truncated and grew again is a new epoch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from telemetry_pipeline.sources.base import Loss, Position, Positions, Slice, SliceData

#: Some 50,000 records; larger slices gain little speed and cost memory (the bytes are held once).
SLICE_BYTES = 32 * 1024 * 1024
TAIL_BYTES = 4096
HEAD_BYTES = 4096


@dataclass(frozen=True)
class _Found:
    """A file of the sink, matched with the ledger: read on from `start` of (partition, epoch)."""

    path: Path
    partition: str
    epoch: int
    start: int
    size: int
    closed: bool


class OtelFileSource:
    """Reads `active` and the files rotated out of it (`<stem>-<timestamp>-size<suffix>`)."""

    def __init__(self, name: str, active: Path, *, slice_bytes: int = SLICE_BYTES) -> None:
        self.name = name
        self._active = active
        self._slice_bytes = slice_bytes

    def waiting_bytes(self, positions: Positions) -> int:
        """Bytes no claim covers yet. A half-written last line counts only once it is whole."""
        waiting = 0
        for found in self._find(positions):
            with found.path.open("rb") as file:
                end = self._end_of_whole_lines(file, found)
            waiting += max(0, end - found.start)
        return waiting

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        for found in self._find(positions):
            with found.path.open("rb") as file:
                start = found.start
                while (cut := self._cut(file, found, start)) is not None:
                    yield cut
                    start = cut.slice.end

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        for found in self._find(positions):
            if (found.partition, found.epoch) != (wanted.partition, wanted.epoch):
                continue
            with found.path.open("rb") as file:
                file.seek(wanted.start)
                data = file.read(wanted.end - wanted.start)
            if len(data) == wanted.end - wanted.start:
                return data
        return None

    def losses(self, positions: Positions) -> list[Loss]:
        """One loss for each epoch that was cut off: its file went on under a new epoch."""
        found = {(file.partition, file.epoch) for file in self._find(positions)}
        cut_off = []
        for (partition, epoch), position in positions.items():
            if (partition, epoch + 1) in found and (partition, epoch) not in found:
                lost = Slice(self.name, partition, epoch, position.end, position.end)
                cut_off.append(Loss(lost, "truncated"))
        return cut_off

    def _find(self, positions: Positions) -> list[_Found]:
        by_identity: dict[tuple[str, int], _Found] = {}
        for path in self._paths():
            try:
                found = self._match(path, positions)
            except FileNotFoundError:
                continue  # renamed since it was listed: the next look finds its new name
            if found is None:
                continue
            # A copy of a file is the same file; the longer one has more to read.
            known = by_identity.get((found.partition, found.epoch))
            if known is None or found.size > known.size:
                by_identity[found.partition, found.epoch] = found
        return list(by_identity.values())

    def _paths(self) -> list[Path]:
        pattern = f"{self._active.stem}-*{self._active.suffix}"
        rotated = sorted(self._active.parent.glob(pattern))
        return [*rotated, self._active] if self._active.exists() else rotated

    def _match(self, path: Path, positions: Positions) -> _Found | None:
        closed = path != self._active
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = _head(file, closed=closed)
            if head is None:
                return None
            partition = hashlib.sha256(head).hexdigest()[:32]
            epochs = sorted(
                (epoch for known, epoch in positions if known == partition), reverse=True
            )
            for epoch in epochs:
                position = positions[partition, epoch]
                if _continues(file, size, position):
                    return _Found(path, partition, epoch, position.end, size, closed)
        return _Found(path, partition, epochs[0] + 1 if epochs else 0, 0, size, closed)

    def _cut(self, file: BinaryIO, found: _Found, start: int) -> SliceData | None:
        file.seek(start)
        data = file.read(self._slice_bytes)
        at_end = len(data) < self._slice_bytes
        cut = data.rfind(b"\n") + 1
        while cut == 0 and not at_end:  # one line longer than a slice
            more = file.read(self._slice_bytes)
            at_end = len(more) < self._slice_bytes
            data += more
            cut = data.rfind(b"\n") + 1
        # Nobody will finish the last line of a rotated file: it is whole as it stands.
        if found.closed and at_end:
            cut = len(data)
        if cut == 0:
            return None
        data = data[:cut]
        end = start + cut
        file.seek(max(0, end - TAIL_BYTES))
        tail = file.read(end - max(0, end - TAIL_BYTES))
        wanted = Slice(self.name, found.partition, found.epoch, start, end)
        return SliceData(wanted, data, hashlib.sha256(tail).hexdigest())

    def _end_of_whole_lines(self, file: BinaryIO, found: _Found) -> int:
        if found.closed or found.size <= found.start:
            return found.size
        position = found.size
        while position > found.start:
            begin = max(found.start, position - TAIL_BYTES)
            file.seek(begin)
            newline = file.read(position - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            position = begin
        return found.start


def _head(file: BinaryIO, *, closed: bool) -> bytes | None:
    """The bytes up to the end of the first record, at most HEAD_BYTES; None while it is unfinished.

    They never change while the file grows. Blank lines at the start belong to the head, but do
    not end it: many rotated files start with one.
    """
    head = b""
    while len(head) < HEAD_BYTES:
        line = file.readline(HEAD_BYTES - len(head))
        head += line
        if line.endswith(b"\n") and line.strip():
            return head
        if not line:
            return head if closed and head.strip() else None
    return head


def _continues(file: BinaryIO, size: int, position: Position) -> bool:
    if size < position.end:
        return False
    begin = max(0, position.end - TAIL_BYTES)
    file.seek(begin)
    tail = file.read(position.end - begin)
    return hashlib.sha256(tail).hexdigest() == position.tail_sha256
