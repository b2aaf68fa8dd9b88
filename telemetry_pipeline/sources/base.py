"""What every source gives: immutable slices, their bytes, and what can never be read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Slice:
    """A half-open range [start, end) of one epoch of one partition; it never changes.

    Offsets are bytes for files. `batch_id` (64 bit) marks every row the slice produces.
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
    """How far the ledger's claims reach in one epoch, and the hash of the last bytes before."""

    end: int
    tail_sha256: str


#: (partition, epoch) -> Position
Positions = Mapping[tuple[str, int], Position]


@dataclass(frozen=True)
class SliceData:
    """A slice and its bytes, whole records only."""

    slice: Slice
    data: bytes
    tail_sha256: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Loss:
    """A range that can never be ingested, and why."""

    slice: Slice
    reason: str


class Source(Protocol):
    """A source plans from the ledger's positions alone: it keeps no state of its own."""

    name: str

    def waiting_bytes(self, positions: Positions) -> int:
        """Bytes that no claim covers yet; cheap enough for every sensor tick."""

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        """The unclaimed slices, in order, read as they are asked for."""

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        """The bytes of a claimed slice, or None when they are gone."""

    def losses(self, positions: Positions) -> list[Loss]:
        """Ranges that vanished before they were read."""
