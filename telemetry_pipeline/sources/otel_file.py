"""The OpenTelemetry Collector's rotated OTLP/JSON files.

A file is known by its content, not by its name or inode: its partition is the hash of its first
record, and a file continues an epoch of that partition when the bytes before the ledger's end
hash as they did when they were claimed. So a rename (rotation) changes nothing, and a file that
was truncated and grew again is a new epoch.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources.base import Encoding, Loss, Positions, Slice, SliceData

#: Some 50,000 records; larger slices gain little speed and cost memory (the bytes are held once).
SLICE_BYTES = 32 * 1024 * 1024
TAIL_BYTES = 4096
HEAD_BYTES = 4096


@dataclass(frozen=True)
class _Found:
    """A file of the sink, matched with the ledger: read on from `start` of (partition, epoch).

    `tail_sha256` is the hash of the bytes before `start`.
    """

    path: Path
    partition: str
    epoch: int
    start: int
    tail_sha256: str
    size: int
    closed: bool


class OtelFileSource:
    """Reads `active` and the files rotated out of it (`<stem>-<timestamp>-size<suffix>`)."""

    encoding: Encoding = "otlp_json"
    unit = "bytes"

    def __init__(
        self,
        name: str,
        active: Path,
        *,
        hashes_on_read: bool = False,
        slice_bytes: int = SLICE_BYTES,
    ) -> None:
        self.name = name
        self.hashes_on_read = hashes_on_read
        self._active = active
        self._slice_bytes = slice_bytes

    def waiting(self, positions: Positions) -> int:
        """Bytes no claim covers yet. A half-written last line counts only once it is whole."""
        waiting = 0
        for found in self._find(positions):
            with self._reopened(found, positions) as file:
                if file is not None:
                    waiting += max(0, self._end_of_whole_lines(file, found) - found.start)
        return waiting

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        for found in self._find(positions):
            with self._reopened(found, positions) as file:
                if file is None:
                    continue
                start, tail = found.start, found.tail_sha256
                # A file that was cut off while it was being read is no longer this partition.
                while _hash_before(file, start) == tail:
                    cut = self._cut(file, found, start)
                    if cut is None:
                        break
                    yield cut
                    start, tail = cut.slice.end, cut.tail_sha256

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        """The claimed bytes. A rotation between listing and opening is no loss: it looks twice.

        Raises TelemetryError when the sink's folder is not there: a volume that is not mounted
        says nothing about what it holds.
        """
        if not self._active.parent.is_dir():
            raise TelemetryError(
                f"source {self.name}: {self._active.parent} is not there, and slices of it are "
                "unfinished; mount it, or make it empty to give them up as lost"
            )
        for _ in range(2):
            for found in self._find(positions):
                if (found.partition, found.epoch) != (wanted.partition, wanted.epoch):
                    continue
                with self._reopened(found, positions) as file:
                    if file is None:
                        continue
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

    def reach(self, positions: Positions) -> dict[tuple[str, int], int]:
        return {(file.partition, file.epoch): file.size for file in self._find(positions)}

    def acknowledge(self, settled: Slice, rejected: Mapping[str, int]) -> None:
        """Nobody watches a file."""

    def close(self) -> None:
        """Files are open only while they are read."""

    def _find(self, positions: Positions) -> list[_Found]:
        by_identity: dict[tuple[str, int], _Found] = {}
        for path in self._paths():
            found = self._match(path, positions)
            if found is None:
                continue
            # A copy of a file is the same file; the longer one has more to read.
            known = by_identity.get((found.partition, found.epoch))
            if known is None or found.size > known.size:
                by_identity[found.partition, found.epoch] = found
        return list(by_identity.values())

    def _paths(self) -> list[Path]:
        pattern = f"{self._active.stem}-*{self._active.suffix}"
        return [*sorted(self._active.parent.glob(pattern)), self._active]

    def _match(self, path: Path, positions: Positions) -> _Found | None:
        with _opened(path) as file:
            return None if file is None else self._match_open(file, path, positions)

    def _match_open(self, file: BinaryIO, path: Path, positions: Positions) -> _Found | None:
        closed = path != self._active
        size = os.fstat(file.fileno()).st_size
        head = _head(file, closed=closed)
        if head is None:
            return None
        partition = hashlib.sha256(head).hexdigest()[:32]
        fresh = 0  # epochs follow each other without a gap
        while (partition, fresh) in positions:
            fresh += 1
        for epoch in reversed(range(fresh)):
            position = positions[partition, epoch]
            if size >= position.end and _hash_before(file, position.end) == position.tail_sha256:
                return _Found(
                    path, partition, epoch, position.end, position.tail_sha256, size, closed
                )
        return _Found(path, partition, fresh, 0, _hash_before(file, 0), size, closed)

    @contextmanager
    def _reopened(self, found: _Found, positions: Positions) -> Iterator[BinaryIO | None]:
        """The file that was found, or None when another took its name since: that one is found
        at the next look, under its own identity."""
        with _opened(found.path) as file:
            if file is not None:
                now = self._match_open(file, found.path, positions)
                is_same = now is not None and (now.partition, now.epoch, now.start) == (
                    found.partition,
                    found.epoch,
                    found.start,
                )
                file = file if is_same else None
            yield file

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
        wanted = Slice(self.name, found.partition, found.epoch, start, end)
        return SliceData(wanted, data, _hash_before(file, end))

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
    file.seek(0)
    start = file.read(HEAD_BYTES)
    blank = len(start) - len(start.lstrip(b"\r\n\t "))
    newline = start.find(b"\n", blank)
    if newline >= 0:
        return start[: newline + 1]
    if len(start) == HEAD_BYTES:
        return start
    return start if closed and blank < len(start) else None


def _hash_before(file: BinaryIO, end: int) -> str:
    """The SHA-256 of the last bytes before `end`, in hex."""
    begin = max(0, end - TAIL_BYTES)
    file.seek(begin)
    return hashlib.sha256(file.read(end - begin)).hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | None]:
    """The file, or None when it is gone: renamed or deleted since it was listed."""
    try:
        # Unbuffered: a buffer would still give bytes of before a file was cut off.
        file = path.open("rb", buffering=0)
    except (FileNotFoundError, IsADirectoryError):
        yield None
        return
    except OSError as error:
        raise TelemetryError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        yield file if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
