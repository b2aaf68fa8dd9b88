"""Content-Encoding of bodies and Accept-Encoding of answers, both as streams."""

from __future__ import annotations

import zlib
from typing import Any, Final, Protocol

import lz4.frame
import zstandard

from telemetry_pipeline.warehouse.embedded.errors import QueryError, bad_argument, not_supported

# Small slices bound how much a maliciously dense body can unfold at a time.
_SLICE: Final = 16 * 1024


class Decoder(Protocol):
    """Unpacks a body piece by piece."""

    def feed(self, data: bytes) -> bytes:
        """What the piece unpacks to."""

    def finish(self) -> None:
        """Raise `QueryError` if the body broke off."""


class Encoder(Protocol):
    """Packs an answer piece by piece."""

    def feed(self, data: bytes) -> bytes:
        """Packed bytes, flushed so that the client can read the piece now."""

    def finish(self) -> bytes:
        """The end of the packed answer."""


def decoder_for(content_encoding: str) -> Decoder:
    """The decoder a Content-Encoding header asks for."""
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return _Identity()
    if name not in _DECODERS:
        raise not_supported(
            f"Content-Encoding {name[:20]!r}: send gzip, deflate, zstd or lz4, or no compression"
        )
    return _FrameDecoder(name)


def encoder_for(accept_encoding: str) -> tuple[str, Encoder] | None:
    """The first encoding of the client's list that is known here, or None."""
    for entry in accept_encoding.split(","):
        name, _, quality = entry.strip().lower().partition(";")
        if quality.replace(" ", "") in ("q=0", "q=0.0"):
            continue
        if name in ("gzip", "deflate"):
            return name, _Zlib(31 if name == "gzip" else 15)
        if name == "zstd":
            return name, _Zstd()
        if name == "lz4":
            return name, _Lz4()
    return None


class _Identity:
    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> None:
        return None


_DECODERS: Final[dict[str, Any]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "deflate": lambda: zlib.decompressobj(15),
    "zstd": lambda: zstandard.ZstdDecompressor().decompressobj(),
    "lz4": lz4.frame.LZ4FrameDecompressor,
}


class _FrameDecoder:
    """Any of the decompressor objects, over a body of one or more frames."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._frame: Any = _DECODERS[name]()
        self._touched = False

    def feed(self, data: bytes) -> bytes:
        unpacked: list[bytes] = []
        for start in range(0, len(data), _SLICE):
            self._feed_slice(data[start : start + _SLICE], unpacked)
        return b"".join(unpacked)

    def _feed_slice(self, data: bytes, unpacked: list[bytes]) -> None:
        while data:
            if self._frame.eof:
                self._frame = _DECODERS[self._name]()
            try:
                unpacked.append(self._frame.decompress(data))
            except (zlib.error, zstandard.ZstdError, RuntimeError, ValueError) as error:
                raise bad_argument(f"The body is not valid {self._name}") from error
            self._touched = True
            data = self._frame.unused_data or b"" if self._frame.eof else b""

    def finish(self) -> None:
        if self._touched and not self._frame.eof:
            raise QueryError(
                271, "CANNOT_DECOMPRESS", f"The {self._name} body ends before its frame does"
            )


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._packer = zlib.compressobj(level=3, wbits=window_bits)

    def feed(self, data: bytes) -> bytes:
        return self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._packer.flush()


class _Zstd:
    def __init__(self) -> None:
        self._packer = zstandard.ZstdCompressor(level=1).compressobj()

    def feed(self, data: bytes) -> bytes:
        packed = self._packer.compress(data)
        return packed + self._packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self) -> bytes:
        return self._packer.flush()


class _Lz4:
    def __init__(self) -> None:
        self._packer = lz4.frame.LZ4FrameCompressor(auto_flush=True)
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        return self._begin() + bytes(self._packer.compress(data))

    def finish(self) -> bytes:
        return self._begin() + bytes(self._packer.flush())

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return bytes(self._packer.begin())
