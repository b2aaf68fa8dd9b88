"""What a sink's file holds, by offset: plain files as they are, archives decompressed.

Both give whole records only, hold one slice at a time, and never more of a line than
`max_line_bytes`: a longer one is cut into pieces, each of which ingest counts as undecodable.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from telemetry_pipeline.sources.compressed_files import (
    ArchiveError,
    Compression,
    Limits,
    decompressed,
)

TAIL_BYTES = 4096
HEAD_BYTES = 4096
_SEARCH_BYTES = 64 * 1024
#: A file that nobody wrote to for this long is not being written.
SETTLED_SECONDS = 10
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PROTO_FIRST_FIELD = b"\x0a"


@dataclass(frozen=True)
class Cutting:
    """How large slices are, and how long a line may be. Bytes."""

    slice_bytes: int
    max_line_bytes: int


class Content(Protocol):
    """The bytes of one open file."""

    def hash_before(self, end: int) -> str:
        """The SHA-256 of the last TAIL_BYTES before `end`, in hex."""

    def read(self, start: int, end: int) -> bytes:
        """The bytes [start, end); fewer when the file is shorter."""

    def records(self, start: int, whole: int) -> bytes:
        """Whole records from `start` on, about a slice of them, none past `whole`; nothing when
        the file is no longer what it was."""


class PlainContent:
    """A file whose bytes are what it holds; it may grow or be cut off at any time."""

    def __init__(self, file: BinaryIO, cutting: Cutting) -> None:
        self._file = file
        self._cutting = cutting

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def hash_before(self, end: int) -> str:
        return hashed(self.read(max(0, end - TAIL_BYTES), end))

    def read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(end - start)

    def records(self, start: int, whole: int) -> bytes:
        end = self._cut(start, whole)
        data = self.read(start, end)
        return data if len(data) == end - start else b""  # cut off meanwhile

    def whole(self, *, closed: bool) -> int:
        """Where the last whole record ends. Nobody will finish the last line of a closed file:
        it is whole as it stands, unless it is half a record that somebody may be copying."""
        size = self.size
        ends = self._last_newline(max(0, size - self._cutting.max_line_bytes), size)
        if ends is None:  # a line too long to wait for, or one with nothing before it
            ends = size if size > self._cutting.max_line_bytes else 0
        if closed and ends < size and (self._is_settled() or _is_json(self.read(ends, size))):
            return size
        return ends

    def _is_settled(self) -> bool:
        return is_settled(os.fstat(self._file.fileno()).st_mtime)

    def _cut(self, start: int, whole: int) -> int:
        wanted = start + self._cutting.slice_bytes
        if wanted >= whole:
            return whole
        ends = self._last_newline(start, wanted)
        if ends is None:
            longest = min(whole, start + self._cutting.max_line_bytes)
            ends = self._first_newline(wanted, longest)
        if ends is not None:
            return ends
        return whole if whole <= start + self._cutting.max_line_bytes else wanted

    def _last_newline(self, first: int, end: int) -> int | None:
        """The offset behind the last newline in [first, end)."""
        while end > first:
            begin = max(first, end - _SEARCH_BYTES)
            newline = self.read(begin, end).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return None

    def _first_newline(self, first: int, end: int) -> int | None:
        """The offset behind the first newline in [first, end)."""
        while first < end:
            block = self.read(first, min(end, first + _SEARCH_BYTES))
            newline = block.find(b"\n")
            if newline >= 0:
                return first + newline + 1
            if not block:
                return None
            first += len(block)
        return None


class ArchiveContent:
    """The decompressed bytes of an archive. It reads forward; going back starts anew."""

    def __init__(
        self, file: BinaryIO, compression: Compression, limits: Limits, cutting: Cutting
    ) -> None:
        self._open: Callable[[], Iterator[bytes]] = lambda: decompressed(file, compression, limits)
        self._cutting = cutting
        self._restart()

    def _restart(self) -> None:
        self._chunks = self._open()
        self._at = 0
        self._ahead = b""  # decompressed, not yet passed
        self._behind = b""  # the last TAIL_BYTES passed

    def hash_before(self, end: int) -> str:
        self._go_to(end)
        return hashed(self._behind)

    def read(self, start: int, end: int) -> bytes:
        self._go_to(start)
        out = io.BytesIO()
        self._pass(end - start, out)
        return out.getvalue()

    def records(self, start: int, whole: int) -> bytes:
        self._go_to(start)
        before = self._behind
        longest = min(self._cutting.max_line_bytes, whole - start)
        out = io.BytesIO()  # gives its bytes away without a copy
        cut = self._pass(min(self._cutting.slice_bytes, whole - start), out)
        while cut == 0 and out.tell() < longest:
            reached = out.tell()
            cut = self._pass_line(longest - reached, out)
            if out.tell() == reached:
                break
        if start + out.tell() < whole:
            self._push_back(out, cut or self._cutting.slice_bytes)
            out.seek(max(0, out.getbuffer().nbytes - TAIL_BYTES))
            self._behind = (before + out.read())[-TAIL_BYTES:]
        return out.getvalue()

    def _go_to(self, offset: int) -> None:
        if offset < self._at:
            self._restart()
        self._pass(offset - self._at, None)

    def _pass(self, count: int, out: io.BytesIO | None) -> int:
        """Go on by `count` bytes, into `out`; returns where in it the last newline ends, or 0."""
        cut = 0
        while count > 0 and (chunk := self._next(count)):
            count -= len(chunk)
            if out is not None:
                newline = chunk.rfind(b"\n") + 1
                cut = out.tell() + newline if newline else cut
                out.write(chunk)
        return cut

    def _pass_line(self, most: int, out: io.BytesIO) -> int:
        """Go on to the end of the line that `out` is in the middle of, or of the next chunk."""
        if not self._ahead:
            self._ahead = next(self._chunks, b"")
        newline = self._ahead.find(b"\n") + 1
        return self._pass(min(newline or len(self._ahead), most), out)

    def _next(self, most: int) -> bytes:
        if not self._ahead:
            self._ahead = next(self._chunks, b"")
        chunk, self._ahead = self._ahead[:most], self._ahead[most:]
        self._at += len(chunk)
        self._behind = (self._behind + chunk)[-TAIL_BYTES:]
        return chunk

    def _push_back(self, out: io.BytesIO, cut: int) -> None:
        """Leave `cut` bytes in `out`; the rest comes again."""
        out.seek(cut)
        again = out.read()
        out.truncate(cut)
        self._ahead = again + self._ahead
        self._at -= len(again)


@dataclass(frozen=True)
class Survey:
    """What one pass over an archive found.

    `size`: bytes that could be read; `whole`: where the last whole record of them ends; `tails`:
    the hash before each offset that was asked for, and before `whole`; `problem`: why the rest
    could not be read, None of an archive that is whole.
    """

    head: bytes | None
    size: int
    whole: int
    tails: dict[int, str]
    problem: str | None


def survey(chunks: Iterator[bytes], ends_of: Callable[[bytes], Iterable[int]]) -> Survey:
    """Pass over a whole archive. `ends_of` says, for its head, before which offsets to hash."""
    passed = _Passed(ends_of)
    problem: str | None = None
    try:
        for chunk in chunks:
            passed.add(chunk)
    except ArchiveError as error:
        problem = error.reason
    return passed.finish(problem)


class _Passed:
    """What a pass over an archive has seen so far."""

    def __init__(self, ends_of: Callable[[bytes], Iterable[int]]) -> None:
        self._ends_of = ends_of
        self._start = b""
        self._head: bytes | None = None
        self._ends: list[int] | None = None  # known with the head; the next one is the last
        self._size = self._whole = 0
        self._behind = self._behind_whole = b""
        self._tails: dict[int, str] = {}

    def add(self, chunk: bytes) -> None:
        if self._ends is not None:
            self._go_on(chunk)
            return
        self._start += chunk
        if len(self._start) >= HEAD_BYTES:
            self._begin(closed=False)

    def finish(self, problem: str | None) -> Survey:
        if self._ends is None:
            self._begin(closed=problem is None)
        if problem is None:
            self._whole, self._behind_whole = self._size, self._behind
        self._tails[self._whole] = hashed(self._behind_whole)
        return Survey(self._head, self._size, self._whole, self._tails, problem)

    def _begin(self, *, closed: bool) -> None:
        self._head = head_of(self._start, closed=closed)
        ends = self._ends_of(self._head) if self._head is not None else ()
        self._ends = sorted(ends, reverse=True)
        self._go_on(self._start)

    def _go_on(self, chunk: bytes) -> None:
        while self._ends and self._ends[-1] <= self._size + len(chunk):
            end = self._ends.pop()
            self._tails[end] = hashed(self._before(chunk, end - self._size))
        newline = chunk.rfind(b"\n") + 1
        if newline:
            self._whole = self._size + newline
            self._behind_whole = self._before(chunk, newline)
        self._behind = self._before(chunk, len(chunk))
        self._size += len(chunk)

    def _before(self, chunk: bytes, count: int) -> bytes:
        return (self._behind + chunk[max(0, count - TAIL_BYTES) : count])[-TAIL_BYTES:]


def head_of(start: bytes, *, closed: bool) -> bytes | None:
    """The bytes up to the end of the first record, at most HEAD_BYTES; None while it is unfinished.

    `start` is the first HEAD_BYTES of a file, or all of a shorter one. They never change while the
    file grows. Blank lines at the start belong to the head, but do not end it: many rotated files
    start with one.
    """
    start = start[:HEAD_BYTES]
    blank = len(start) - len(start.lstrip(b"\r\n\t "))
    newline = start.find(b"\n", blank)
    if newline >= 0:
        return start[: newline + 1]
    if len(start) == HEAD_BYTES:
        return start
    return start if closed and blank < len(start) else None


def length_prefixed_head(start: bytes) -> bytes | None:
    """The first message, at most HEAD_BYTES, if the file holds messages behind their lengths.

    The Collector's file exporter writes such files with `compression: zstd` (each message a zstd
    frame) or `format: proto`: a big-endian uint32, then that many bytes. No line of JSON begins
    with NUL. A file that lost its blocks in a power cut begins with many.
    """
    length = int.from_bytes(start[:4], "big")
    is_message = start[4:8] == _ZSTD_MAGIC or start[4:5] == _PROTO_FIRST_FIELD
    if start[:1] != b"\0" or length == 0 or not is_message:
        return None
    return start[: min(4 + length, HEAD_BYTES)]


def hashed(data: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(data).hexdigest()


def is_settled(modified: float, seconds: float = SETTLED_SECONDS) -> bool:
    """Whether nobody wrote for that long. A time in the future is one of a clock that is wrong."""
    return abs(time.time() - modified) > seconds


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
