"""The OpenTelemetry Collector's rotated OTLP/JSON files.

A file is known by its content, not by its name or inode: its partition is the hash of its first
record, and a file continues an epoch of that partition when the bytes before the ledger's end
hash as they did when they were claimed. So a rename (rotation) or a compression changes nothing,
and a file that was truncated and grew again is a new epoch. In doubt a file is read: what was read
before is recognised by its events' ids, and what was not read would be lost.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources.base import (
    Encoding,
    Loss,
    Position,
    Positions,
    Slice,
    SliceData,
)
from telemetry_pipeline.sources.compressed_files import ArchiveTooLarge, Limits
from telemetry_pipeline.sources.file_content import Content, Cutting, PlainContent, hashed
from telemetry_pipeline.sources.sink_files import (
    KnownFile,
    SinkFiles,
    partition_of,
)

log = logging.getLogger(__name__)

#: Some 150,000 records: what a slice costs whatever its size is then a tenth of the whole. Larger
#: ones gain little and cost memory (the bytes are held once).
SLICE_BYTES = 128 * 1024 * 1024
#: No Collector sends a line this long: what has one is no OTLP/JSON.
MAX_LINE_BYTES = 64 * 1024 * 1024
#: A folder that changes while it is looked at is looked at again, this often at most.
LOOKS = 5
#: Partitions that stand for an archive, not for what it holds: `<kind>:<fingerprint>`.
COVERED, TOO_LARGE, UNREADABLE = "covered", "too_large", "unreadable"
_NOTES = (f"{COVERED}:", f"{TOO_LARGE}:", f"{UNREADABLE}:")
_UNKNOWN = Position(0, hashed(b""))


@dataclass(frozen=True)
class _Found:
    """A file of the sink, matched with the ledger: read on from `start` of (partition, epoch).

    `tail_sha256` is the hash of the bytes before `start`. `copies`: files that hold the same, or
    the beginning of it.
    """

    file: KnownFile
    partition: str
    epoch: int
    start: int
    tail_sha256: str
    copies: tuple[KnownFile, ...] = ()

    @property
    def identity(self) -> tuple[str, int]:
        return self.partition, self.epoch


@dataclass(frozen=True)
class _View:
    """The sink at one moment, matched with the ledger.

    `unreadable`: files of which nothing can be read. `unsure`: partitions that may be there in a
    file that is being written, or that moved while it was looked at; `is_stable` is False when the
    folder would not keep still. Of what is not in the view, only then nothing follows.
    """

    found: tuple[_Found, ...] = ()
    unreadable: tuple[KnownFile, ...] = ()
    unsure: frozenset[str] = frozenset()
    is_stable: bool = True


@dataclass
class _Identified:
    """The files of a look by partition, while they are being told apart."""

    by_partition: dict[str, list[KnownFile]] = field(default_factory=dict)
    covered: dict[str, list[KnownFile]] = field(default_factory=dict)
    unreadable: list[KnownFile] = field(default_factory=list)
    unsure: set[str] = field(default_factory=set)
    is_stable: bool = True


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
        max_line_bytes: int = MAX_LINE_BYTES,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.hashes_on_read = hashes_on_read
        self._active = active
        self._limits = limits or Limits()
        self._files = SinkFiles(active, self._limits, Cutting(slice_bytes, max_line_bytes))

    def waiting(self, positions: Positions) -> int:
        """Bytes no claim covers yet, and those of losses that are not in the ledger yet.

        A half-written last line counts only once it is whole.
        """
        view = self._look(positions)
        unread = sum(max(0, found.file.whole - found.start) for found in view.found)
        lost = self._losses(view, positions)
        return unread + sum(max(1, loss.slice.end - loss.slice.start) for loss in lost)

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        for found in self._look(positions).found:
            is_plain = found.file.compression is None
            if found.file.whole <= found.start and not (is_plain and not found.file.closed):
                continue
            with self._files.opened(found.file) as content:
                if content is not None:
                    yield from self._slices(content, found)

    def _slices(self, content: Content, found: _Found) -> Iterator[SliceData]:
        start, tail = found.start, found.tail_sha256
        while self._is_still(content, found, start, tail):
            whole = found.file.whole
            if isinstance(content, PlainContent):  # it may have grown
                whole = content.whole(closed=found.file.closed)
            data = content.records(start, whole) if whole > start else b""
            # A file that was cut off while it was being read is no longer this partition.
            if not data or not self._is_still(content, found, start, tail):
                return
            end = start + len(data)
            tail = content.hash_before(end)
            yield SliceData(Slice(self.name, found.partition, found.epoch, start, end), data, tail)
            start = end
            del data  # the next slice is read into its place

    @staticmethod
    def _is_still(content: Content, found: _Found, start: int, tail: str) -> bool:
        if not isinstance(content, PlainContent):
            return True  # it was opened as the one that was surveyed
        partition = partition_of(content, closed=found.file.closed)
        return partition == found.partition and content.hash_before(start) == tail

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        """The claimed bytes. A rotation between listing and opening is no loss: it looks twice.

        Raises TelemetryError when the sink's folder is not there: a volume that is not mounted
        says nothing about what it holds.
        """
        if not self._files.folder.is_dir():
            raise self._not_there("slices of it are unfinished")
        # What is covered by claims is exactly what is asked for here.
        positions = {key: known for key, known in positions.items() if not _is_note(key[0])}
        for _ in range(2):
            for found in self._look(positions, only=wanted.partition).found:
                if found.identity != (wanted.partition, wanted.epoch):
                    continue
                with self._files.opened(found.file) as content:
                    if content is None:
                        continue
                    data = content.read(wanted.start, wanted.end)
                if len(data) == wanted.end - wanted.start:
                    return data
        return None

    def reach(self, positions: Positions) -> dict[tuple[str, int], int]:
        """How far each file reaches, and which archives hold nothing that was not read or lost:
        the ledger remembers that, so that no later run decompresses them."""
        view = self._look(positions)
        open_losses = {
            (loss.slice.partition, loss.slice.epoch) for loss in self._losses(view, positions)
        }
        reach = {found.identity: found.file.size for found in view.found}
        for found in view.found:
            for file in (found.file, *found.copies):
                is_covered = file.whole <= found.start and found.identity not in open_losses
                if file.compression is not None and is_covered:
                    reach[f"{COVERED}:{file.fingerprint}", 0] = max(1, file.size)
        return reach

    def losses(self, positions: Positions) -> list[Loss]:
        """Ranges that are gone or cannot be read, and are not in the ledger yet.

        Raises TelemetryError when the sink's folder is not there and something in it was unread.
        """
        view = self._look(positions)
        for file in view.unreadable:
            log.error("source %s: %s: %s", self.name, file.path, _explain(file))
        for found in view.found:
            if found.file.problem is not None:
                log.error("source %s: %s: %s", self.name, found.file.path, _explain(found.file))
        return self._losses(view, positions)

    def acknowledge(self, settled: Slice, rejected: Mapping[str, int]) -> None:
        """Nobody watches a file."""

    def close(self) -> None:
        """Files are open only while they are read."""

    def _losses(self, view: _View, positions: Positions) -> list[Loss]:
        """Loss records that the view calls for; the same view and ledger give the same ones."""
        losses = [
            *(self._unreadable(file, positions) for file in view.unreadable),
            *(self._damaged(found, positions) for found in view.found),
        ]
        if view.is_stable:
            alive = {found.identity for found in view.found}
            losses += [
                self._gone(identity, position, alive)
                for identity, position in positions.items()
                if identity not in alive
                and identity[0] not in view.unsure
                and not _is_note(identity[0])
            ]
        return [loss for loss in losses if loss is not None]

    def _gone(
        self, identity: tuple[str, int], position: Position, alive: set[tuple[str, int]]
    ) -> Loss | None:
        """The unread rest of an epoch that no file continues.

        Another file with the same first record says that this one was cut off. What was written
        between the last look and that moment is then not known: a loss even if all that was seen
        had been read.
        """
        partition, epoch = identity
        is_cut_off = any(other == partition and later > epoch for other, later in alive)
        start = max(position.end, position.lost_end)
        if position.seen_end > start:
            reason = "truncated" if is_cut_off else "disappeared"
            return Loss(Slice(self.name, partition, epoch, start, position.seen_end), reason)
        if is_cut_off and position.lost_end < position.end:
            return Loss(Slice(self.name, partition, epoch, start, start), "truncated")
        return None

    def _damaged(self, found: _Found, positions: Positions) -> Loss | None:
        """What of an archive cannot be read: how much that was is known only if it was seen."""
        if found.file.problem is None:
            return None
        known = positions.get(found.identity, _UNKNOWN)
        end = max(found.file.size, known.seen_end)
        if known.lost_end >= end:
            return None
        start = max(found.file.whole, found.start, known.lost_end)
        return Loss(
            Slice(self.name, found.partition, found.epoch, min(start, end), end),
            found.file.problem,
        )

    def _unreadable(self, file: KnownFile, positions: Positions) -> Loss | None:
        """A file of which nothing is read, under the partition that stands for the file itself."""
        partition, end = self._note_of(file)
        if positions.get((partition, 0), _UNKNOWN).lost_end >= end:
            return None
        lost = max(end, file.signature.size) if partition.startswith(UNREADABLE) else end
        return Loss(Slice(self.name, partition, 0, 0, lost), file.problem or "unreadable")

    def _note_of(self, file: KnownFile) -> tuple[str, int]:
        """The partition of a file that cannot be read, and how far its loss must at least reach."""
        if file.problem == ArchiveTooLarge.reason:
            return f"{TOO_LARGE}:{file.fingerprint}", self._limits.allowed(file.signature.size)
        return f"{UNREADABLE}:{file.fingerprint}", 1

    def _look(self, positions: Positions, only: str | None = None) -> _View:
        """The sink's files, matched with the ledger; `only`: those of one partition.

        A file that is renamed while the folder is read may be in it under no name at all. What is
        not seen counts as gone only if the folder was the same before and after.
        """
        if not self._files.folder.is_dir():
            self._refuse_if_unread(positions)
            return _View(is_stable=False)
        for _ in range(LOOKS):
            before = self._files.listing()
            view = self._view(before, positions, only)
            if view.is_stable and self._files.listing() == before:
                self._files.forget_all_but(before)
                return view
        return _View(view.found, view.unreadable, view.unsure, is_stable=False)

    def _refuse_if_unread(self, positions: Positions) -> None:
        if any(
            known.seen_end > max(known.end, known.lost_end) and not _is_note(partition)
            for (partition, _), known in positions.items()
        ):
            raise self._not_there("not all of it was read")

    def _not_there(self, why: str) -> TelemetryError:
        return TelemetryError(
            f"source {self.name}: {self._files.folder} is not there, and {why}; "
            "mount it, or make it empty to give them up as lost"
        )

    def _view(self, names: Iterable[str], positions: Positions, only: str | None) -> _View:
        epochs: dict[str, dict[int, Position]] = {}
        for (partition, epoch), position in positions.items():
            epochs.setdefault(partition, {})[epoch] = position
        told = _Identified()
        for name in names:
            self._identify(name, epochs, told, only)
        found: list[_Found] = []
        for partition, files in told.by_partition.items():
            matched = self._match(partition, files, epochs.get(partition, {}))
            if matched and partition in told.covered and _opens_an_epoch(matched, epochs):
                # It may be the beginning of what an archive holds that needs no reading itself.
                for archive in told.covered[partition]:
                    self._survey(archive, epochs)
                together = [*files, *told.covered[partition]]
                matched = self._match(partition, together, epochs.get(partition, {}))
            if matched is None:
                told.unsure.add(partition)
                told.is_stable = False
            else:
                found += matched
        return _View(tuple(found), tuple(told.unreadable), frozenset(told.unsure), told.is_stable)

    def _identify(
        self,
        name: str,
        epochs: Mapping[str, Mapping[int, Position]],
        told: _Identified,
        only: str | None,
    ) -> None:
        """Put one file where it belongs: under its partition, or among the unreadable ones."""
        file = self._files.known(name)
        if file is None or (only is not None and file.partition != only):
            return
        first = file.partition  # of an archive, before it is surveyed: from its first bytes
        if file.compression is not None:
            if f"{COVERED}:{file.fingerprint}" in epochs:
                if first is not None:
                    told.unsure.add(first)
                    told.covered.setdefault(first, []).append(file)
                return
            if self._is_known_as_too_large(file, epochs):
                return
            self._survey(file, epochs)
        if file.is_unfinished:
            told.unsure |= {first} if first else set()
            told.is_stable &= first is not None
        elif file.problem == ArchiveTooLarge.reason or (file.problem and file.partition is None):
            told.unreadable.append(file)
        elif file.partition is not None:
            told.by_partition.setdefault(file.partition, []).append(file)

    def _survey(self, archive: KnownFile, epochs: Mapping[str, Mapping[int, Position]]) -> None:
        self._files.survey(
            archive, lambda partition: [known.end for known in epochs.get(partition, {}).values()]
        )

    def _is_known_as_too_large(
        self, file: KnownFile, epochs: Mapping[str, Mapping[int, Position]]
    ) -> bool:
        known = epochs.get(f"{TOO_LARGE}:{file.fingerprint}", {}).get(0, _UNKNOWN)
        return known.lost_end >= self._limits.allowed(file.signature.size)

    def _match(
        self, partition: str, files: list[KnownFile], epochs: Mapping[int, Position]
    ) -> list[_Found] | None:
        """Which epoch each file continues; None when a file changed under the comparison.

        Files that differ never share an epoch, copies always do. An epoch goes to the longest file
        that continues it, the epoch that was read furthest first; a file that continues none opens
        one.
        """
        left = self._without_copies(files)
        found = []
        by_end = sorted(epochs.items(), key=lambda item: (-item[1].end, item[0]))
        for epoch, position in by_end:
            for group in left:
                continues = self._continues(group[0], position)
                if continues is None:
                    return None
                if continues:
                    left.remove(group)
                    tail = position.tail_sha256
                    file, *copies = group
                    found.append(_Found(file, partition, epoch, position.end, tail, tuple(copies)))
                    break
        unused = (epoch for epoch in range(len(epochs) + len(left)) if epoch not in epochs)
        for group, epoch in zip(left, unused, strict=False):
            file, *copies = group
            found.append(_Found(file, partition, epoch, 0, hashed(b""), tuple(copies)))
        return found

    def _continues(self, file: KnownFile, position: Position) -> bool | None:
        """Whether a file goes on where an epoch ends; None when it is no longer that file.

        A plain file that is shorter than it was seen to be was cut off, and what follows is
        another epoch even if all that was claimed is still there: the bytes that come next would
        take the offsets of those that are gone.
        """
        shortest = position.end if file.compression else max(position.end, position.seen_end)
        if file.size < shortest:
            return False
        tail = self._files.tail(file, position.end)
        return None if tail is None else tail == position.tail_sha256

    def _without_copies(self, files: list[KnownFile]) -> list[list[KnownFile]]:
        """The files in groups of one content, the longest first in each and among all."""
        groups: list[list[KnownFile]] = []
        for file in sorted(
            files, key=lambda file: (-file.size, -file.whole, bool(file.compression), file.path)
        ):
            group = next((each for each in groups if self._files.is_copy(file, each[0])), None)
            if group is None:
                groups.append([file])
            else:
                group.append(file)
        return groups


def _opens_an_epoch(
    matched: Iterable[_Found], epochs: Mapping[str, Mapping[int, Position]]
) -> bool:
    return any(found.epoch not in epochs.get(found.partition, {}) for found in matched)


def _is_note(partition: str) -> bool:
    return partition.startswith(_NOTES)


def _explain(file: KnownFile) -> str:
    """What is wrong with a file and what to do, for the log."""
    match file.problem:
        case "length_prefixed_messages":
            return (
                "it holds messages behind their lengths, not lines: take `compression` and "
                "`format: proto` out of the Collector's file exporter; nothing of it is read"
            )
        case "decompressed_too_large":
            return (
                "it decompresses to more than max_decompressed_bytes or max_compression_ratio "
                "allow, and nothing of it is read; raise them in telemetry.yaml if it is no bomb"
            )
        case "archive_truncated":
            return "it ends too early; what could be read is read, the rest is lost"
        case _:
            return "it is corrupt; what could be read before the damage is read, the rest is lost"
