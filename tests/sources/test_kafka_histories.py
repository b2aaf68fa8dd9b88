"""Random histories of a topic and of runs that die: no message is read twice or silently lost.

The topic lives in memory, so that hypothesis can try many histories; what a real broker does stands
in test_kafka.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry_pipeline.ingest.ledger import NOTHING_BEFORE
from telemetry_pipeline.sources import kafka
from telemetry_pipeline.sources.base import Loss, Position, SliceData
from telemetry_pipeline.sources.kafka import KafkaSource, match
from telemetry_pipeline.sources.kafka_client import Connection, Offsets, Topic

NAME = "events"
PARTITIONS = 2


@dataclass
class Log:
    """One partition: what stands at each offset (nothing: a control record), from `low` on."""

    at: list[bytes | None] = field(default_factory=list)
    low: int = 0


@dataclass
class MemoryTopic:
    """What KafkaSource asks of its client, answered from memory."""

    number: int = 0
    logs: list[Log] | None = field(default_factory=lambda: [Log() for _ in range(PARTITIONS)])

    def identity(self, patience: float) -> str | None:
        made = hashlib.sha256(str(self.number).encode()).hexdigest()
        return None if self.logs is None else made

    def topic(self, patience: float) -> Topic | None:
        identity = self.identity(patience)
        if identity is None or self.logs is None:
            return None
        offsets = {
            number: Offsets(log.low, len(log.at), len(log.at))
            for number, log in enumerate(self.logs)
        }
        return Topic(NAME, identity, offsets)

    def messages(
        self, number: int, start: int, end: int, patience: float
    ) -> Iterator[tuple[int, bytes | None]]:
        assert self.logs is not None
        for offset in range(start, end):
            yield offset + 1, self.logs[number].at[offset]

    def commit(self, number: int, offset: int) -> None:
        """Nobody watches."""

    def committed(self, number: int, patience: float) -> int:
        return 0

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class History:
    """A topic, a ledger, and what must become of every message.

    `owed`: messages that a run may not miss any more, by (partition, epoch, offset): they expired
    after the topic's first claim, or were seen in a claimed log that was deleted.
    """

    topic: MemoryTopic = field(default_factory=MemoryTopic)
    positions: dict[tuple[str, int], Position] = field(default_factory=dict)
    claimed: list[SliceData] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    owed: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    written: int = 0

    @property
    def source(self) -> KafkaSource:
        source = KafkaSource(
            "app", Connection("nowhere:1"), NAME, encoding="otlp_json", slice_bytes=12
        )
        source._client = self.topic  # type: ignore[assignment]
        return source

    # -- what happens to topics ---------------------------------------------------------

    def write(self, number: int, count: int) -> None:
        for _ in range(count if self.topic.logs else 0):
            self.topic.logs[number].at.append(b"m%d" % self.written)  # type: ignore[index]
            self.written += 1

    def control(self, number: int, count: int) -> None:
        if self.topic.logs:
            self.topic.logs[number].at += [None] * count

    def expire(self, number: int, count: int) -> None:
        if not self.topic.logs:
            return
        log = self.topic.logs[number]
        upto = min(len(log.at), log.low + count)
        epoch = self._epoch(number)
        is_ours = any(position.end for position in self.positions.values())
        for offset in range(log.low, upto if is_ours else log.low):
            self._owe(number, epoch, offset)
        log.low = upto

    def make_anew(self, *_: int) -> None:
        self.delete()
        self.topic.number += 1
        self.topic.logs = [Log() for _ in range(PARTITIONS)]

    def delete(self, *_: int) -> None:
        for number, log in enumerate(self.topic.logs or []):
            epoch = self._epoch(number)
            position = self.positions.get((f"{NAME}/{number}", epoch))
            # The first claim writes the topic's id down; before it, one topic is like another.
            seen = position.seen_end if position is not None and position.end else 0
            for offset in range(log.low, min(seen, len(log.at))):
                self._owe(number, epoch, offset)
            # What came and expired after the last look went with the topic: nobody can know of it.
            self.owed = {
                at: message
                for at, message in self.owed.items()
                if at[:2] != (f"{NAME}/{number}", epoch) or at[2] < seen
            }
        self.topic.logs = None

    def _epoch(self, number: int) -> int:
        topic = self.topic.topic(0)
        assert topic is not None
        return match(topic, self.positions)[number].epoch

    def _owe(self, number: int, epoch: int, offset: int) -> None:
        assert self.topic.logs is not None
        message = self.topic.logs[number].at[offset]
        if message is not None:
            self.owed[f"{NAME}/{number}", epoch, offset] = message

    # -- runs ------------------------------------------------------------------------------

    def run(self, number: int, slices: int) -> None:
        """A run that dies after so many slices; 0: after it recorded what was lost."""
        source = self.source
        before = dict(self.positions)
        for key, end in source.reach(before).items():
            position = self.positions.get(key, Position(0, NOTHING_BEFORE))
            if end > max(position.end, position.seen_end):
                self.positions[key] = replace(position, seen_end=end)
        for loss in source.losses(before):
            key = (loss.slice.partition, loss.slice.epoch)
            position = self.positions.get(key, Position(0, NOTHING_BEFORE))
            assert position.lost_end < loss.slice.end, "a loss is recorded once"
            self.positions[key] = replace(position, lost_end=loss.slice.end)
            self.losses.append(loss)
        for count, cut in enumerate(source.read_new(dict(self.positions))):
            if count == slices:
                return
            key = (cut.slice.partition, cut.slice.epoch)
            position = self.positions.get(key, Position(0, NOTHING_BEFORE))
            assert cut.slice.start >= position.end, "no slice overlaps another"
            self.positions[key] = replace(position, end=cut.slice.end, tail_sha256=cut.tail_sha256)
            self.claimed.append(cut)

    def settle(self) -> None:
        """Runs as often as the sensor starts one."""
        for _ in range(5):
            if not self.source.waiting(self.positions):
                break
            self.run(0, 1000)
        assert self.source.waiting(self.positions) == 0, "runs would be started for ever"

    def check(self) -> None:
        read = [row for cut in self.claimed for row in cut.data.split()]
        assert len(read) == len(set(read)), "a message is in one slice"
        lost = {
            (loss.slice.partition, loss.slice.epoch, offset)
            for loss in self.losses
            for offset in range(loss.slice.start, loss.slice.end)
        }
        silent = {at for at, message in self.owed.items() if message not in read} - lost
        assert not silent, "what nobody can read any more is a recorded loss"
        there = [
            message
            for log in self.topic.logs or []
            for message in log.at[log.low :]
            if message is not None
        ]
        assert set(there) <= set(read), "what is there is read"


STEPS = st.tuples(
    st.sampled_from(
        ["write", "write", "write", "control", "expire", "make_anew", "delete", "run", "run", "run"]
    ),
    st.integers(0, PARTITIONS - 1),
    st.integers(0, 6),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_every_message_is_read_once_or_recorded_as_lost(
    steps: list[tuple[str, int, int]],
) -> None:
    history = History()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kafka, "GONE_SECONDS", 0)
        for step, number, count in steps:
            getattr(history, step)(number, count)
        history.settle()
    history.check()
