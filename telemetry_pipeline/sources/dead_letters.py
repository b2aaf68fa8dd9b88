"""Dead letters that somebody asked to be judged again.

A replay is frozen before it is read (ops.dead_letter_replay_items), so it is a partition like any
other: its slices are ranges of item numbers, and the ledger lands each exactly once. Items whose
letter is gone, or does not open with the key at hand, are passed over in a slice without records:
slices follow each other without a gap, so whoever reads, and whenever, claims the same start.

Slices land one after the other, whoever lands them, in one order for all: two letters may be copies
of one event, and two loaders at the same moment would not see each other's. So nothing new is read
while another slice may be landing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources.base import Encoding, Loss, Positions, Slice, SliceData, hash_of
from telemetry_pipeline.sources.statements import statement

#: The source's name: no source of telemetry.yaml may have it.
DEAD_LETTERS = "dead_letters"
SLICE_ITEMS = 20_000
#: Of encrypted payload; a letter larger than this is a slice of its own.
SLICE_BYTES = 16 * 1024 * 1024
#: The bytes of a slice without a record: a blank line counts as nothing.
_NOTHING = b"\n"


@dataclass(frozen=True)
class PayloadKey:
    """What opens payloads: 64 hex characters, and the id that letters remember it by."""

    key_id: str
    secret_hex: str = field(repr=False)

    def parameters(self) -> dict[str, str]:
        return {"key_id": self.key_id, "secret_key_dead_letter": self.secret_hex}


class DeadLetterSource:
    """Reads frozen replays. Partition: the replay's id; offsets: item numbers; epoch 0.

    `grace_seconds`: how long after its deadline a slice may still be landing. Closes `client`.
    """

    name = DEAD_LETTERS
    encoding: Encoding = "otlp_json"
    hashes_on_read = False
    unit = "letters"

    def __init__(
        self,
        client: Client,
        key: PayloadKey,
        *,
        grace_seconds: int,
        slice_items: int = SLICE_ITEMS,
        slice_bytes: int = SLICE_BYTES,
    ) -> None:
        self._client = client
        self._key = key
        self._grace_seconds = grace_seconds
        self._slice_items = slice_items
        self._slice_bytes = slice_bytes

    def waiting(self, positions: Positions) -> int:
        """Items of replays that no slice has reached."""
        return sum(items - end for _, end, items in self._unfinished(positions))

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        for replay, end, items in self._unfinished(positions):
            while end < items:
                if self._is_landing():
                    return
                cut = self._read_next(replay, end, items)
                yield cut
                end = cut.slice.end

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        """The lines of a claimed slice, or None when letters of it are gone.

        Raises TelemetryError when letters are there, but under another key: the slice is whole
        again once that key is back.
        """
        if self._was_passed(wanted):
            return _NOTHING
        data = self._lines(wanted)
        if _whole(data, wanted):
            return data
        if closed := self._rows("dead_letters_closed", _range(wanted)):
            ids = ", ".join(str(row["key_id"]) for row in closed)
            raise TelemetryError(
                f"replay {wanted.partition} is unfinished, and letters of it do not open with the "
                f"key at hand (id {self._key.key_id}); they were encrypted under id {ids}: put "
                "that key into TELEMETRY_KEY_DEAD_LETTER for `telemetry dlq replay --resume`"
            )
        return None

    def reach(self, positions: Positions) -> Mapping[tuple[str, int], int]:
        """A replay's end is known from its items."""
        return {}

    def losses(self, positions: Positions) -> list[Loss]:
        """Letters that end before they are read are no loss of a source: the report counts them."""
        return []

    def acknowledge(self, settled: Slice, rejected: Mapping[str, int]) -> None:
        """A letter's state follows from the ledger."""

    def close(self) -> None:
        self._client.close()

    def _unfinished(self, positions: Positions) -> list[tuple[str, int, int]]:
        """(replay, end of its claims, number of its items), in the order of commits."""
        replays = self._client.query(
            "SELECT toString(replay_id), items FROM ops.dead_letter_replays ORDER BY _block_number"
        ).result_rows
        found = [
            (replay, known.end if (known := positions.get((replay, 0))) else 0, items)
            for replay, items in replays
        ]
        return [(replay, end, items) for replay, end, items in found if end < items]

    def _is_landing(self) -> bool:
        parameters = {"source": self.name, "grace_seconds": self._grace_seconds}
        return bool(self._rows("dead_letters_landing", parameters)[0]["slices"])

    def _read_next(self, replay: str, start: int, items: int) -> SliceData:
        limits = {"max_items": self._slice_items, "max_bytes": self._slice_bytes}
        for _ in range(3):  # letters may go between the two readings
            (run,) = self._rows("dead_letters_next", {"replay_id": replay, "start": start} | limits)
            if run["end"] == 0 or run["first"] > start:
                gap = Slice(self.name, replay, 0, start, run["first"] if run["end"] else items)
                return SliceData(gap, _NOTHING, _tail(replay))
            cut = Slice(self.name, replay, 0, start, run["end"])
            data = self._lines(cut)
            if _whole(data, cut):
                return SliceData(cut, data, _tail(replay))
        raise TelemetryError(
            f"replay {replay}: letters go while they are read; run `telemetry dlq replay --resume`"
        )

    def _was_passed(self, wanted: Slice) -> bool:
        """Whether the slice was claimed as one without records."""
        return bool(
            self._client.query(
                "SELECT 1 FROM ops.slice_intents WHERE batch_id = {batch_id:UInt64} "
                "AND bytes_hash = {nothing:String} LIMIT 1",
                {"batch_id": wanted.batch_id, "nothing": hash_of(_NOTHING)},
            ).result_rows
        )

    def _lines(self, wanted: Slice) -> bytes:
        """A line for each item that can be read."""
        parameters = _range(wanted) | self._key.parameters()
        return self._client.raw_query(statement("dead_letters_lines"), parameters)

    def _rows(self, name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        found = self._client.query(statement(name), parameters | self._key.parameters())
        return list(found.named_results())


def _whole(data: bytes, wanted: Slice) -> bool:
    return data.count(b"\n") == wanted.end - wanted.start


def _range(wanted: Slice) -> dict[str, Any]:
    return {"replay_id": wanted.partition, "start": wanted.start, "end": wanted.end}


def _tail(replay: str) -> str:
    return hashlib.sha256(replay.encode()).hexdigest()
