"""What every source gives: immutable slices, their bytes, and what can never be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import xxhash

#: What a slice's bytes are. otlp_json: OTLP/JSON export requests, one a line. otlp_proto: OTLP
#: protobuf export requests, each behind its length as a varint. product_telemetry_batch: lines of
#: {"organisation": "<id or empty>", "batch": <ProductTelemetryBatch>}.
Encoding = Literal["otlp_json", "otlp_proto", "product_telemetry_batch"]


def hash_of(data: bytes) -> str:
    """What tells a slice's bytes from others when they are read again: XXH3, 128 bits, in hex.

    Not cryptographic, and need not be: who can write to the sink can write any event. SHA-256 would
    cost a quarter of what the engine needs to parse the same bytes.
    """
    return xxhash.xxh3_128_hexdigest(data)


def varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


@dataclass(frozen=True)
class Slice:
    """A half-open range [start, end) of one epoch of one partition; it never changes.

    Offsets are bytes for files, message offsets for Kafka, and for Redis streams numbers made of
    entry ids. `batch_id` (64 bit) marks every row the slice produces.
    """

    source: str
    partition: str
    epoch: int
    start: int
    end: int

    @property
    def batch_id(self) -> int:
        identity = f"{self.source}\n{self.partition}\n{self.epoch}\n{self.start}\n{self.end}"
        return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "little") or 1


@dataclass(frozen=True)
class Position:
    """What the ledger knows of one epoch of a partition.

    `end` and `tail_sha256`: how far claims reach, and what tells that it is the same epoch (files:
    the hash of the bytes before `end`; others: of what names the topic or stream). `lost_end`: how
    far ranges recorded as lost reach. `seen_end`: how far the source was ever seen to reach.
    """

    end: int
    tail_sha256: str
    lost_end: int = 0
    seen_end: int = 0


#: (partition, epoch) -> Position
Positions = Mapping[tuple[str, int], Position]


@dataclass(frozen=True)
class SliceData:
    """A slice and its bytes, whole records only."""

    slice: Slice
    data: bytes
    tail_sha256: str

    @property
    def bytes_hash(self) -> str:
        return hash_of(self.data)


@dataclass(frozen=True)
class Loss:
    """A range that can never be ingested, and why."""

    slice: Slice
    reason: str


class Source(Protocol):
    """A source plans from the ledger's positions alone: it keeps no state of its own."""

    name: str
    encoding: Encoding
    #: Whether ids arrive as they are and are hashed in the staging session, before anything is
    #: written; otherwise only edge ids are taken.
    hashes_on_read: bool
    #: What `waiting` counts: bytes, messages, entries.
    unit: str

    def waiting(self, positions: Positions) -> int:
        """How much no claim covers yet, in `unit`; cheap enough for every sensor tick."""

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        """The unclaimed slices, in order, read as they are asked for."""

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        """The bytes of a claimed slice, or None when they are gone."""

    def reach(self, positions: Positions) -> Mapping[tuple[str, int], int]:
        """How far each epoch reaches now, where a loss could not be told without knowing it."""

    def losses(self, positions: Positions) -> list[Loss]:
        """Ranges that vanished before they were read and are not yet in the ledger as lost."""

    def acknowledge(self, settled: Slice, rejected: Mapping[str, int]) -> None:
        """The ledger has the slice's result (`rejected`: records by reason): tell those who watch
        the source. Not needed for exactly once; a crash may leave it out or repeat it."""

    def close(self) -> None:
        """Let go of connections."""
