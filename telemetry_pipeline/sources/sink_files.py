"""The files of a sink's folder, and what is known of each: looked up again only if it changed.

What was learned of a file is kept in this process under its device, inode, size and times, so that
a tick over a thousand files that nobody touched costs a stat each. It is a hint: whoever reads
bytes looks at the file itself again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources.compressed_files import (
    ArchiveEndsEarly,
    ArchiveError,
    ArchiveTooLarge,
    Compression,
    Limits,
    decompressed,
)
from telemetry_pipeline.sources.file_content import (
    HEAD_BYTES,
    TAIL_BYTES,
    ArchiveContent,
    Content,
    Cutting,
    PlainContent,
    Survey,
    hashed,
    head_of,
    is_settled,
    length_prefixed_head,
    survey,
)

LENGTH_PREFIXED = "length_prefixed_messages"
#: An archive that ends too early is given this long to be finished by whoever writes it.
ARCHIVE_SETTLED_SECONDS = 300
_COMPARED_BYTES = 1024 * 1024
_COMPARISONS_KEPT = 10_000
_ENDINGS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}


@dataclass(frozen=True)
class Signature:
    """What changes when a file does."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Signature:
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    @property
    def is_old(self) -> bool:
        """Whether a change from now on must show: times may be no finer than a second or two."""
        return is_settled(self.modified_ns / 1e9) and is_settled(self.changed_ns / 1e9)


@dataclass
class KnownFile:
    """What was learned of a file while it had `signature`.

    `partition`: who it is, None while its first record is unfinished. `size` and `whole`: how many
    bytes it holds, and where its last whole record ends; both of an archive decompressed, and known
    once it was surveyed. `fingerprint`: who the archive itself is, by its compressed bytes.
    `problem`: why it cannot be read to its end.
    """

    path: Path
    signature: Signature
    closed: bool
    partition: str | None
    size: int = 0
    whole: int = 0
    compression: Compression | None = None
    fingerprint: str = ""
    problem: str | None = None
    is_surveyed: bool = True
    tails: dict[int, str] = field(default_factory=dict)
    #: Whether a change after it was learned must show in its signature.
    was_old: bool = field(init=False)

    def __post_init__(self) -> None:
        self.was_old = self.signature.is_old

    def is_same_archive(self, other: KnownFile) -> bool:
        """An archive's own bytes tell it apart, with the checksum at their end, at any age."""
        return self.compression is not None and (self.signature, self.fingerprint) == (
            other.signature,
            other.fingerprint,
        )

    @property
    def is_unfinished(self) -> bool:
        """An archive that somebody may still be writing."""
        return self.problem == ArchiveEndsEarly.reason and not is_settled(
            self.signature.modified_ns / 1e9, ARCHIVE_SETTLED_SECONDS
        )


#: Shared by all sources of the process: a sensor builds its source anew at every tick.
_known: dict[tuple[Path, Limits, Cutting], KnownFile] = {}
_same: dict[tuple[Signature, Signature], bool] = {}


@dataclass(frozen=True)
class SinkFiles:
    """`active`, and what was rotated out of it: `<stem>-*<suffix>`, with .gz or .zst behind it."""

    active: Path
    limits: Limits
    cutting: Cutting

    @property
    def folder(self) -> Path:
        return self.active.parent

    def listing(self) -> dict[str, int]:
        """Name and inode of the sink's files, rotated ones first; empty without the folder."""
        try:
            with os.scandir(self.folder) as entries:
                found = {
                    entry.name: entry.inode() for entry in entries if self._is_ours(entry.name)
                }
        except FileNotFoundError:
            return {}
        active = self.active.name
        return dict(sorted(found.items(), key=lambda item: (item[0] == active, item[0])))

    def _is_ours(self, name: str) -> bool:
        prefix, suffix = self.active.stem + "-", self.active.suffix
        stem, ending = os.path.splitext(name)
        return any(
            each == self.active.name or (each.startswith(prefix) and each.endswith(suffix))
            for each in ([name, stem] if ending in _ENDINGS else [name])
        )

    def known(self, name: str) -> KnownFile | None:
        """What is known of a file; None when it is gone or is no file. Archives: see survey()."""
        path = self.folder / name
        key = (path, self.limits, self.cutting)
        cached = _known.get(key)
        if cached is not None and cached.was_old and cached.signature == _signature(path):
            return cached
        with _opened(path) as file:
            learned = None if file is None else self._learn(path, file)
        if learned is None:
            _known.pop(key, None)
        elif cached is not None and learned.is_same_archive(cached):
            cached.was_old = learned.was_old
            return cached
        else:
            _known[key] = learned
        return learned

    def forget_all_but(self, names: Iterable[str]) -> None:
        """Files that are gone need no memory."""
        kept = {self.folder / name for name in names}
        for key in [key for key in _known if key[0].parent == self.folder and key[0] not in kept]:
            _known.pop(key, None)
        if len(_same) > _COMPARISONS_KEPT:
            _same.clear()

    def survey(self, archive: KnownFile, ends_of: Callable[[str], Iterable[int]]) -> None:
        """Pass over an archive once, to learn how much of it can be read.

        `ends_of` gives, for its partition, the offsets before which its hash will be asked for.
        """
        if archive.is_surveyed or archive.compression is None:
            return
        with _opened(archive.path) as file:
            if file is None or Signature.of(os.fstat(file.fileno())) != archive.signature:
                archive.partition = None  # it changed since it was listed: the next look tells
                return
            chunks = decompressed(file, archive.compression, self.limits)
            found = survey(chunks, lambda head: ends_of(_partition(head)))
        _note_survey(archive, found)

    def tail(self, known: KnownFile, end: int) -> str | None:
        """The hash of the bytes before `end`; None when it is no longer that file."""
        if end not in known.tails:
            with self.opened(known) as content:
                if content is None:
                    return None
                known.tails[end] = content.hash_before(end)
        return known.tails[end]

    @contextmanager
    def opened(self, known: KnownFile) -> Iterator[Content | None]:
        """What the file holds now, or None when it is not that file any more.

        A plain file may have grown; an archive must be the very one that was surveyed.
        """
        with _opened(known.path) as file:
            yield None if file is None else self._content(known, file)

    def is_copy(self, short: KnownFile, long: KnownFile) -> bool:
        """Whether all of `short` stands at the start of `long`, byte for byte.

        True also when one of them changed meanwhile: the next look tells, and until then a file
        is not read twice.
        """
        if not (short.signature.is_old and long.signature.is_old):
            return self._starts_alike(short, long)
        pair = (short.signature, long.signature)
        if pair not in _same:
            _same[pair] = self._starts_alike(short, long)
        return _same[pair]

    def _starts_alike(self, short: KnownFile, long: KnownFile) -> bool:
        with self.opened(short) as one, self.opened(long) as other:
            if one is None or other is None:
                return True
            for start in range(0, short.size, _COMPARED_BYTES):
                end = min(start + _COMPARED_BYTES, short.size)
                if one.read(start, end) != other.read(start, end):
                    unchanged = all(
                        file.signature == _signature(file.path) or file.compression is None
                        for file in (short, long)
                    )
                    return not unchanged
        return True

    def _content(self, known: KnownFile, file: BinaryIO) -> Content | None:
        if known.compression is not None:
            if Signature.of(os.fstat(file.fileno())) != known.signature:
                return None
            return ArchiveContent(file, known.compression, self.limits, self.cutting)
        content = PlainContent(file, self.cutting)
        return content if partition_of(content, closed=known.closed) == known.partition else None

    def _learn(self, path: Path, file: BinaryIO) -> KnownFile:
        signature = Signature.of(os.fstat(file.fileno()))
        closed = path != self.active
        start = file.read(HEAD_BYTES)
        if (message := length_prefixed_head(start)) is not None:
            identity = hashed(message)[:32]
            return KnownFile(
                path, signature, closed, None, fingerprint=identity, problem=LENGTH_PREFIXED
            )
        compression = _ENDINGS.get(path.suffix)
        if compression is None:
            return self._learn_plain(path, file, signature)
        file.seek(max(0, signature.size - TAIL_BYTES))
        identity = hashed(start + file.read(TAIL_BYTES) + b"%d" % signature.size)[:32]
        return KnownFile(
            path,
            signature,
            closed,
            self._partition_of_archive(file, compression),
            compression=compression,
            fingerprint=identity,
            is_surveyed=False,
        )

    def _learn_plain(self, path: Path, file: BinaryIO, signature: Signature) -> KnownFile:
        closed = path != self.active
        content = PlainContent(file, self.cutting)
        return KnownFile(
            path,
            signature,
            closed,
            partition_of(content, closed=closed),
            size=signature.size,
            whole=content.whole(closed=closed),
        )

    def _partition_of_archive(self, file: BinaryIO, compression: Compression) -> str | None:
        """Who an archive is, by its first record alone; None when that cannot be read (yet)."""
        start = b""
        try:
            for chunk in decompressed(file, compression, self.limits):
                start += chunk
                if len(start) >= HEAD_BYTES:
                    break
        except ArchiveError:
            head = head_of(start, closed=False)
        else:
            head = head_of(start, closed=True)
        return None if head is None else _partition(head)


def partition_of(content: PlainContent, *, closed: bool) -> str | None:
    """Who a plain file is: the hash of its first record."""
    start = content.read(0, HEAD_BYTES)
    is_whole = closed and content.whole(closed=True) >= len(start)
    head = head_of(start, closed=is_whole)
    return None if head is None else _partition(head)


def _partition(head: bytes) -> str:
    return hashed(head)[:32]


def _note_survey(archive: KnownFile, found: Survey) -> None:
    archive.partition = None if found.head is None else _partition(found.head)
    archive.size, archive.whole = found.size, found.whole
    archive.tails |= found.tails
    archive.problem = found.problem
    archive.is_surveyed = True
    if found.problem == ArchiveTooLarge.reason:
        archive.whole = 0


def _signature(path: Path) -> Signature | None:
    try:
        return Signature.of(path.stat())
    except OSError:
        return None


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
