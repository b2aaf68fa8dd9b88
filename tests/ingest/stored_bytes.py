"""Every byte below a folder, as it lies there and as ClickHouse unpacks it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import lz4.block
import zstandard

_LZ4, _ZSTD, _NONE = 0x82, 0x90, 0x02
_CHECKSUM, _HEADER = 16, 9


def stored(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """(file, bytes) for every file, and again for what its compressed blocks hold."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        yield path, data
        if path.suffix == ".bin":
            yield path, b"".join(_unpacked(data))


def _unpacked(data: bytes) -> Iterator[bytes]:
    position = 0
    while position + _CHECKSUM + _HEADER <= len(data):
        method, packed, size = struct.unpack_from("<BII", data, position + _CHECKSUM)
        block = data[position + _CHECKSUM + _HEADER : position + _CHECKSUM + packed]
        if method == _LZ4:
            yield lz4.block.decompress(block, uncompressed_size=size)
        elif method == _ZSTD:
            yield zstandard.ZstdDecompressor().decompress(block, max_output_size=size)
        elif method == _NONE:
            yield block
        position += _CHECKSUM + packed
