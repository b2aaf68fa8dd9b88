"""A Kafka topic: the ledger holds the offsets, so every message is in exactly one slice.

A partition of ours is `<topic>/<number>`; its epochs follow each other when the topic is another
one (it was deleted and made again, told by its id) or its log ends before what was seen of it (cut
off by an unclean election). A slice covers the offsets [start, end), also those without a message:
aborted transactions, control records, gaps of compaction.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import chain

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources.base import (
    Encoding,
    Loss,
    Position,
    Positions,
    Slice,
    SliceData,
    varint,
)
from telemetry_pipeline.sources.kafka_client import Connection, Offsets, Topic, TopicClient

log = logging.getLogger(__name__)

#: Some 50,000 records; a slice is at most one message larger.
SLICE_BYTES = 32 * 1024 * 1024
#: How long a run waits for a broker that restarts. Nothing is lost when it gives up.
RUN_PATIENCE_SECONDS = 60.0
#: How long a tick of the sensor may take at most; the next one comes in seconds.
TICK_PATIENCE_SECONDS = 5.0
#: A topic is gone when it is still not there this much later.
GONE_SECONDS = 3.0

#: A line end inside a JSON message is white space; a record is one line.
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


@dataclass(frozen=True)
class MatchedLog:
    """One partition's log, matched with the ledger.

    `start`: where its next slice begins. `expired`: a range that retention took before it was read
    and that is not in the ledger yet; nothing is read before it is. `is_first_sight`: offsets
    before `offsets.low` are none of this epoch's business.
    """

    number: int
    partition: str
    epoch: int
    offsets: Offsets
    start: int
    expired: tuple[int, int] | None
    is_first_sight: bool

    @property
    def waiting(self) -> int:
        """Offsets to read or to record as lost."""
        lost = self.expired[1] - self.expired[0] if self.expired else 0
        return lost + max(0, self.offsets.stable - max(self.start, self.offsets.low))


class KafkaSource:
    """Reads the messages of one topic, each of them one export request."""

    unit = "messages"

    def __init__(
        self,
        name: str,
        connection: Connection,
        topic: str,
        *,
        encoding: Encoding = "otlp_proto",
        group: str = "telemetry-pipeline",
        hashes_on_read: bool = False,
        slice_bytes: int = SLICE_BYTES,
        patience: float = RUN_PATIENCE_SECONDS,
    ) -> None:
        self.name = name
        self.encoding: Encoding = encoding
        self.hashes_on_read = hashes_on_read
        self._topic = topic
        self._slice_bytes = slice_bytes
        self._patience = patience
        self._is_run = False
        self._cut_here: set[Slice] = set()
        self._client = TopicClient(name, connection, topic, group)

    def waiting(self, positions: Positions) -> int:
        """Offsets that no claim covers and no loss, up to the last stable one: what an open
        transaction holds back does not wait for us."""
        patience = self._patience if self._is_run else TICK_PATIENCE_SECONDS
        topic = self._client.topic(min(patience, self._patience))
        logs = match(topic, positions) if topic is not None else []
        vanished = unread_of_other_logs(self._topic, logs, positions)
        return sum(found.waiting for found in logs) + sum(
            end - start for _, (start, end) in vanished
        )

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        """Reads up to the last stable offsets of the moment it is asked: a busy topic gets its
        marts in between."""
        topic = self._look()
        if topic is None:
            return
        logs = match(topic, positions)
        for found in logs:
            if found.is_first_sight and found.offsets.low > 0:
                yield self._start_here(found, topic)
        for found in logs:
            if found.expired is not None:
                log.warning("source %s: %s expired meanwhile", self.name, found.partition)
                continue
            yield from self._read(found, topic)

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        """What is left of [start, end) in the topic it was read from: the loader holds it against
        the hash of what was claimed, because compaction takes single messages."""
        topic = self._look_twice()
        position = positions.get((wanted.partition, wanted.epoch))
        if topic is None or position is None or position.tail_sha256 != topic.identity:
            return None
        number = int(wanted.partition.rpartition("/")[2])
        offsets = topic.offsets.get(number)
        if offsets is None or offsets.high < wanted.end:
            return None
        data, reached = BytesIO(), max(wanted.start, offsets.low)
        messages = self._client.messages(number, reached, wanted.end, self._patience)
        for reached, value in messages:  # noqa: B007
            self._write(data, value)
        if not self._is_still(topic):
            raise TelemetryError(f"source {self.name}: topic {self._topic} was deleted meanwhile")
        return data.getvalue() if reached >= wanted.end else None

    def reach(self, positions: Positions) -> Mapping[tuple[str, int], int]:
        """The ends of the logs: when a topic is deleted, nothing else tells what was in it."""
        topic = self._look()
        return {
            (found.partition, found.epoch): found.offsets.high
            for found in (match(topic, positions) if topic is not None else [])
            if found.offsets.high > found.offsets.low
        }

    def losses(self, positions: Positions) -> list[Loss]:
        """What retention took unread, and what was unread in topics that are gone."""
        is_worth_two = bool(unread_of_other_logs(self._topic, [], positions))
        topic = self._look_twice() if is_worth_two else self._look()
        logs = match(topic, positions) if topic is not None else []
        expired = (
            ((found.partition, found.epoch), found.expired, "expired_in_topic")
            for found in logs
            if found.expired is not None
        )
        vanished = (
            (key, unread, self._why_gone(positions[key], topic))
            for key, unread in unread_of_other_logs(self._topic, logs, positions)
        )
        return [
            Loss(Slice(self.name, partition, epoch, start, end), reason)
            for (partition, epoch), (start, end), reason in chain(expired, vanished)
        ]

    def acknowledge(self, settled: Slice, rejected: Mapping[str, int]) -> None:
        """Show the group's offset to lag tools. A slice that was taken over may be an old one: it
        never moves the offset back."""
        topic, _, number = settled.partition.rpartition("/")
        if topic != self._topic:
            return
        if settled in self._cut_here:
            self._cut_here.discard(settled)
        elif self._client.committed(int(number), TICK_PATIENCE_SECONDS) >= settled.end:
            return
        self._client.commit(int(number), settled.end)

    def close(self) -> None:
        self._client.close()

    def _look(self) -> Topic | None:
        self._is_run = True  # a tick asks for waiting() alone
        return self._client.topic(self._patience)

    def _look_twice(self) -> Topic | None:
        """For a moment, a broker may not know a topic: before it is given up, it gets another."""
        topic = self._look()
        if topic is None:
            time.sleep(GONE_SECONDS)
            topic = self._look()
        return topic

    def _start_here(self, found: MatchedLog, topic: Topic) -> SliceData:
        """An empty slice up to the first offset that was there when the source was first read:
        what expires from then on is a loss."""
        low = found.offsets.low
        log.info("source %s: %s starts at offset %d", self.name, found.partition, low)
        return self._slice(found, 0, low, b"", topic)

    def _read(self, found: MatchedLog, topic: Topic) -> Iterator[SliceData]:
        start = reached = max(found.start, found.offsets.low)
        data = BytesIO()
        messages = self._client.messages(found.number, start, found.offsets.stable, self._patience)
        for reached, value in messages:
            self._write(data, value)
            if data.tell() >= self._slice_bytes:
                if not self._is_still(topic):
                    return
                yield self._slice(found, start, reached, data.getvalue(), topic)
                start, data = reached, BytesIO()
        if reached > start and self._is_still(topic):
            yield self._slice(found, start, reached, data.getvalue(), topic)

    def _is_still(self, topic: Topic) -> bool:
        """Whether what was just read came from this topic, and not from one made in its place."""
        if self._client.identity(self._patience) == topic.identity:
            return True
        log.warning("source %s: topic %s was deleted meanwhile", self.name, self._topic)
        return False

    def _slice(
        self, found: MatchedLog, start: int, end: int, data: bytes, topic: Topic
    ) -> SliceData:
        cut = Slice(self.name, found.partition, found.epoch, start, end)
        self._cut_here.add(cut)
        return SliceData(cut, data, topic.identity)

    def _write(self, data: BytesIO, value: bytes | None) -> None:
        """Append one message as one record. A message without a value (a tombstone) is nothing."""
        if not value:
            return
        match self.encoding:
            case "otlp_json":
                data.write(value.translate(_ONE_LINE))
                data.write(b"\n")
            case "otlp_proto":
                data.write(varint(len(value)))
                data.write(value)
            case _:
                raise TelemetryError(f"source {self.name}: {self.encoding} is not read from Kafka")

    def _why_gone(self, position: Position, topic: Topic | None) -> str:
        if topic is None:
            return "topic_gone"
        is_same = position.tail_sha256 == topic.identity
        return "topic_truncated" if is_same else "topic_recreated"


def match(topic: Topic, positions: Positions) -> list[MatchedLog]:
    """The topic's logs, each with the epoch that it continues or begins."""
    ours = _of_topic(topic.name, positions)
    is_new_source = not any(_is_claimed(position) for position in ours.values())
    logs = []
    for number, offsets in sorted(topic.offsets.items()):
        partition = f"{topic.name}/{number}"
        epoch = max((epoch for known, epoch in ours if known == partition), default=0)
        position = ours.get((partition, epoch))
        if position is not None and _is_another_log(position, topic, offsets):
            epoch, position = epoch + 1, None
        before = ours.get((partition, epoch - 1))
        was_cut_off = before is not None and before.tail_sha256 == topic.identity
        logs.append(
            _matched(
                number, partition, epoch, offsets, position, is_first=is_new_source or was_cut_off
            )
        )
    return logs


def _matched(
    number: int,
    partition: str,
    epoch: int,
    offsets: Offsets,
    position: Position | None,
    *,
    is_first: bool,
) -> MatchedLog:
    end = position.end if position is not None else 0
    accounted = max(end, position.lost_end) if position is not None else 0
    is_first_sight = is_first and accounted == 0
    is_expired = offsets.low > accounted and not is_first_sight
    return MatchedLog(
        number=number,
        partition=partition,
        epoch=epoch,
        offsets=offsets,
        # A range recorded as lost that is there after all is read: late is better than never.
        start=end if offsets.low <= end else accounted,
        expired=(accounted, offsets.low) if is_expired else None,
        is_first_sight=is_first_sight,
    )


def unread_of_other_logs(
    topic: str, logs: list[MatchedLog], positions: Positions
) -> list[tuple[tuple[str, int], tuple[int, int]]]:
    """What was seen but never read of epochs that no log continues, and is not recorded as lost."""
    current = {(found.partition, found.epoch) for found in logs}
    unread = {
        key: (max(position.end, position.lost_end), position.seen_end)
        for key, position in _of_topic(topic, positions).items()
        if key not in current
    }
    return [(key, (start, end)) for key, (start, end) in unread.items() if end > start]


def _of_topic(topic: str, positions: Positions) -> dict[tuple[str, int], Position]:
    return {key: at for key, at in positions.items() if key[0].rpartition("/")[0] == topic}


def _is_claimed(position: Position) -> bool:
    return position.end > 0


def _is_another_log(position: Position, topic: Topic, offsets: Offsets) -> bool:
    """Whether the log is no longer the one the position speaks of. A log never gets shorter."""
    is_shorter = offsets.high < max(position.end, position.seen_end)
    return is_shorter or (_is_claimed(position) and position.tail_sha256 != topic.identity)
