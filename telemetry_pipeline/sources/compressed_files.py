"""Decompresses .gz and .zst files as a stream, in bounded memory, and says how the stream ended.

The compressed bytes are fed in small pieces: what one piece can grow to (8 MB of gzip, 32 MB of
zstd) is the most that is held, whatever the file claims. The pieces are cut at fixed places, so two
readings of one damaged file end at the same byte.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

import zstandard

Compression = Literal["gz", "zst"]

_BLOCK_BYTES = 64 * 1024
#: gzip makes at most 1,032 bytes of one, a zstd block at most 128 KiB of four.
_GZIP_PIECE_BYTES, _ZSTD_PIECE_BYTES = 8 * 1024, 1024
#: The window that `zstd --long` asks for; a frame that asks for more cannot be read.
_MAX_WINDOW_BYTES = 128 * 1024 * 1024
#: zlib's way of saying: a gzip header and trailer, with the checksum verified.
_GZIP = 31


@dataclass(frozen=True)
class Limits:
    """What a compressed file may grow to. Bytes.

    The ratio (decompressed to compressed) counts only from `ratio_from` bytes on: a small file of
    equal lines compresses better than any real one.
    """

    max_bytes: int = 4 * 1024**3
    max_ratio: int = 200
    ratio_from: int = 64 * 1024**2

    def allowed(self, compressed: int) -> int:
        """The most that a file of `compressed` bytes may decompress to."""
        return min(self.max_bytes, max(self.ratio_from, compressed * self.max_ratio))


class ArchiveError(Exception):
    """The stream did not end as it should. `reason` is what a loss of the rest is recorded as."""

    reason: str


class ArchiveEndsEarly(ArchiveError):
    """It stops in the middle: somebody is still writing it, or never finished."""

    reason = "archive_truncated"


class ArchiveCorrupt(ArchiveError):
    """Its bytes, or its checksum, are wrong."""

    reason = "archive_corrupt"


class ArchiveTooLarge(ArchiveError):
    """It decompresses to more than the limits allow."""

    reason = "decompressed_too_large"


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def decompressed(file: BinaryIO, compression: Compression, limits: Limits) -> Iterator[bytes]:
    """The decompressed bytes of `file` from its start, in chunks.

    Several gzip members or zstd frames are one stream. Raises ArchiveError after the last chunk
    that could be read.
    """
    allowed = limits.allowed(os.fstat(file.fileno()).st_size)
    total = 0
    decompress = _gunzip if compression == "gz" else _unzstd
    for chunk in decompress(file):
        total += len(chunk)
        if total > allowed:
            raise ArchiveTooLarge
        yield chunk


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    def new() -> _Decompressor:
        return zlib.decompressobj(_GZIP)

    def decompress(stream: _Decompressor, piece: bytes) -> Iterator[bytes]:
        before = stream.copy()  # type: ignore[attr-defined]
        try:
            yield stream.decompress(piece)
        except zlib.error:
            # The call that fails gives nothing back: byte by byte all before the damage is read.
            yield from _up_to_the_damage(before, piece)
            raise ArchiveCorrupt from None

    return _streams(_pieces(file, _GZIP_PIECE_BYTES), new, decompress)


def _up_to_the_damage(stream: _Decompressor, piece: bytes) -> Iterator[bytes]:
    for number in range(len(piece)):
        try:
            yield stream.decompress(piece[number : number + 1])
        except zlib.error:
            return


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    context = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)

    def decompress(stream: _Decompressor, piece: bytes) -> Iterator[bytes]:
        try:
            yield stream.decompress(piece)
        except zstandard.ZstdError:
            raise ArchiveCorrupt from None

    return _streams(_pieces(file, _ZSTD_PIECE_BYTES), context.decompressobj, decompress)


def _streams(
    pieces: Iterator[bytes],
    new: Callable[[], _Decompressor],
    decompress: Callable[[_Decompressor, bytes], Iterator[bytes]],
) -> Iterator[bytes]:
    """All members or frames of the file, one after the other."""
    stream, ended = new(), False
    for piece in pieces:
        rest = piece
        while rest:
            if ended:
                rest = rest.lstrip(b"\0")  # tapes and block devices pad with zeros
                if not rest:
                    break
                stream, ended = new(), False
            for chunk in decompress(stream, rest):
                if chunk:
                    yield chunk
            ended = stream.eof
            rest = stream.unused_data if ended else b""
    if not ended:
        raise ArchiveEndsEarly


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    file.seek(0)
    while block := file.read(_BLOCK_BYTES):
        for start in range(0, len(block), size):
            yield block[start : start + size]
