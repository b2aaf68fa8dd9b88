"""Kafka topics, on a real broker: every committed message is in exactly one slice or one loss."""

from __future__ import annotations

import logging
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, Producer, TopicPartition
from fresh import REPOSITORY
from log_records import common, line, record
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from services.broker import Broker, Login, Topic, make_login, running_broker
from services.collector import running_collector
from services.process import SERVICES

from telemetry_pipeline.config import load_config
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.ingest.ledger import NOTHING_BEFORE
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.base import Encoding, Position, Slice, SliceData, varint
from telemetry_pipeline.sources.kafka import KafkaSource
from telemetry_pipeline.sources.kafka_client import Connection, close_clients

pytestmark = [pytest.mark.needs("java"), pytest.mark.needs("kafka/libs")]

GROUP = "lag"
#: The login's password, which no error may repeat.
PASSWORD = "correct-horse-battery"


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Login:
    return make_login(tmp_path_factory.mktemp("login"), "telemetry", PASSWORD)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, login: Login) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("kafka"), login) as broker:
        yield broker
    close_clients()


@pytest.fixture
def topic(broker: Broker) -> Topic:
    return Topic(broker, f"events-{uuid.uuid4().hex[:8]}")


@dataclass
class Reader:
    """Runs as the loader makes them, and a ledger that remembers what they claimed and lost."""

    topic: Topic
    encoding: Encoding = "otlp_json"
    slice_bytes: int = 32 * 1024**2
    patience: float = 30
    positions: dict[tuple[str, int], Position] = field(default_factory=dict)
    claimed: list[SliceData] = field(default_factory=list)
    lost: list[tuple[str, int, int, str]] = field(default_factory=list)

    def source(self) -> KafkaSource:
        return KafkaSource(
            "app",
            Connection(self.topic.broker.address),
            self.topic.name,
            encoding=self.encoding,
            group=GROUP,
            slice_bytes=self.slice_bytes,
            patience=self.patience,
        )

    def waiting(self) -> int:
        with closing(self.source()) as source:
            return source.waiting(self.positions)

    def run(self, meanwhile: Callable[[], None] | None = None) -> bytes:
        """One run; `meanwhile` happens after its first slice. Returns what it read."""
        with closing(self.source()) as source:
            self.note(source)
            new = b""
            for cut in source.read_new(self.positions):
                self.claim(cut)
                source.acknowledge(cut.slice, {})
                new += cut.data
                if meanwhile is not None:
                    meanwhile()
                    meanwhile = None
        return new

    def note(self, source: KafkaSource) -> None:
        """What a run writes into the ledger before it reads."""
        before = dict(self.positions)
        for key, end in source.reach(before).items():
            position = self.positions.get(key, Position(0, NOTHING_BEFORE))
            if end > max(position.end, position.seen_end):
                self.positions[key] = replace(position, seen_end=end)
        for loss in source.losses(before):
            gone = loss.slice
            assert gone.start < gone.end, "a loss is a range"
            position = self.positions.get((gone.partition, gone.epoch), Position(0, NOTHING_BEFORE))
            self.positions[gone.partition, gone.epoch] = replace(
                position, lost_end=max(position.lost_end, gone.end)
            )
            self.lost.append(
                (f"{self._number(gone)}/{gone.epoch}", gone.start, gone.end, loss.reason)
            )

    def claim(self, cut: SliceData) -> None:
        key = (cut.slice.partition, cut.slice.epoch)
        position = self.positions.get(key, Position(0, NOTHING_BEFORE))
        assert cut.slice.start in (position.end, position.lost_end), "no gap, no overlap"
        assert cut.slice.end > cut.slice.start, "the position moves"
        self.positions[key] = replace(position, end=cut.slice.end, tail_sha256=cut.tail_sha256)
        self.claimed.append(cut)

    @property
    def ranges(self) -> list[tuple[str, int, int]]:
        """The claims as (partition/epoch, start, end)."""
        return [
            (f"{self._number(cut.slice)}/{cut.slice.epoch}", cut.slice.start, cut.slice.end)
            for cut in self.claimed
        ]

    def _number(self, of: Slice) -> str:
        return of.partition.removeprefix(f"{self.topic.name}/")


@pytest.fixture
def reader(topic: Topic) -> Reader:
    return Reader(topic)


def messages(first: int, last: int) -> list[bytes]:
    return [b'{"message":%d}' % number for number in range(first, last)]


def lines(first: int, last: int) -> bytes:
    return b"".join(message + b"\n" for message in messages(first, last))


# -- messages become records ---------------------------------------------------------------


def test_each_message_becomes_one_line_and_is_read_once(topic: Topic, reader: Reader) -> None:
    topic.write(*messages(0, 10))
    assert reader.waiting() == 10
    assert reader.run() == lines(0, 10)
    assert reader.waiting() == 0
    assert reader.run() == b""

    topic.write(*messages(10, 13))
    assert reader.waiting() == 3
    assert reader.run() == lines(10, 13)
    assert reader.ranges == [("0/0", 0, 10), ("0/0", 10, 13)]


def test_a_message_of_many_lines_is_still_one_line(topic: Topic, reader: Reader) -> None:
    topic.write(b'{\r\n "a":\n 1}\n', b'{"b":"\\n"}')

    assert reader.run() == b'{   "a":  1} \n{"b":"\\n"}\n'


def test_messages_without_a_value_are_nothing_but_the_position_passes_them(
    topic: Topic, reader: Reader
) -> None:
    topic.write(None, b"", *messages(0, 1), None)

    assert reader.run() == lines(0, 1)
    assert reader.ranges == [("0/0", 0, 4)]
    topic.write(None, key=b"a tombstone")
    assert reader.waiting() == 1
    assert reader.run() == b""
    assert reader.waiting() == 0, "else every tick would start a run"


def test_protobuf_messages_stand_behind_their_length(topic: Topic, reader: Reader) -> None:
    requests = []
    for size in (0, 1, 120, 127, 128, 20_000, 300_000):
        request = ExportLogsServiceRequest()
        added = request.resource_logs.add().scope_logs.add().log_records.add()
        added.body.string_value = "x" * size
        requests.append(request)
    topic.write(*(request.SerializeToString() for request in requests))
    reader.encoding = "otlp_proto"

    data = reader.run()

    assert list(delimited(data)) == requests


def delimited(data: bytes) -> Iterator[ExportLogsServiceRequest]:
    """Length-delimited requests, read by the rules of protobuf's own varints."""
    place = 0
    while place < len(data):
        length = shift = 0
        while True:
            byte = data[place]
            place += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        request = ExportLogsServiceRequest()
        request.ParseFromString(data[place : place + length])
        yield request
        place += length


def test_lengths_are_varints() -> None:
    assert varint(0) == b"\x00"
    assert varint(127) == b"\x7f"
    assert varint(128) == b"\x80\x01"
    assert varint(300) == b"\xac\x02"
    assert varint(2**32) == b"\x80\x80\x80\x80\x10"


def test_a_backlog_is_cut_into_slices_of_whole_messages(topic: Topic, reader: Reader) -> None:
    big = [b'{"x":"' + bytes([65 + number % 26]) * 40_000 + b'"}' for number in range(60)]
    topic.write(*big)
    reader.slice_bytes = 200_000

    read = reader.run()

    assert read == b"".join(message + b"\n" for message in big)
    assert len(reader.claimed) == 12
    assert all(len(cut.data) <= reader.slice_bytes + 40_009 for cut in reader.claimed)


def test_a_topic_that_is_not_there_yet_has_nothing_new(broker: Broker, reader: Reader) -> None:
    source = KafkaSource("app", Connection(broker.address), "no-such-topic")
    with closing(source):
        assert source.waiting({}) == 0
        assert list(source.read_new({})) == []
        assert source.losses({}) == []
        assert source.reach({}) == {}


# -- partitions ----------------------------------------------------------------------------


def test_partitions_added_later_are_read_without_a_restart(topic: Topic, reader: Reader) -> None:
    topic.write(*messages(0, 2))
    with closing(reader.source()) as source:
        for cut in source.read_new(reader.positions):
            reader.claim(cut)
        topic.grow_to(3)
        topic.write(*messages(2, 5), partition=2)

        assert source.waiting(reader.positions) == 3
        assert [cut.data for cut in source.read_new(reader.positions)] == [lines(2, 5)]


def test_each_partition_has_positions_of_its_own(topic: Topic, reader: Reader) -> None:
    topic.grow_to(3)
    for number in range(3):
        topic.write(*messages(10 * number, 10 * number + 1 + number), partition=number)

    assert reader.run() == lines(0, 1) + lines(10, 12) + lines(20, 23)
    assert reader.ranges == [("0/0", 0, 1), ("1/0", 0, 2), ("2/0", 0, 3)]


# -- what is no message --------------------------------------------------------------------


def end_transaction(producer: Producer, keeps: bool) -> None:
    producer.flush(30)  # else an abort forgets messages that were not sent yet
    producer.commit_transaction(30) if keeps else producer.abort_transaction(30)


def eventually(holds: Callable[[], bool]) -> None:
    """The coordinator writes a transaction's marker after it has answered."""
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_only_what_a_transaction_committed_is_read(topic: Topic, reader: Reader) -> None:
    producer = topic.producer(**{"transactional.id": topic.name})
    producer.init_transactions(30)
    for message, keeps in ((b"1", True), (b"2", False), (b"3", True)):
        producer.begin_transaction()
        producer.produce(topic.name, message)
        end_transaction(producer, keeps)
    eventually(lambda: reader.waiting() == 6)

    assert reader.run() == b"1\n3\n"
    assert reader.ranges == [("0/0", 0, 6)], "three messages and three markers"
    assert reader.waiting() == 0


def test_an_open_transaction_neither_waits_nor_hides_what_follows_its_end(
    topic: Topic, reader: Reader
) -> None:
    topic.write(b"0")
    producer = topic.producer(**{"transactional.id": topic.name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic.name, b"in it")
    producer.flush(30)
    topic.write(b"beside it")

    assert reader.run() == b"0\n"
    assert reader.waiting() == 0, "what cannot be read yet must not start runs"
    end_transaction(producer, keeps=True)
    eventually(lambda: reader.waiting() == 3)
    assert reader.run() == b"in it\nbeside it\n"
    assert reader.waiting() == 0


def test_a_range_without_messages_is_an_empty_slice_and_the_position_moves(
    topic: Topic, reader: Reader
) -> None:
    topic.write(b"0")
    reader.run()
    producer = topic.producer(**{"transactional.id": topic.name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic.name, b"never")
    end_transaction(producer, keeps=False)

    eventually(lambda: reader.waiting() == 2)
    assert reader.run() == b""
    assert reader.ranges == [("0/0", 0, 1), ("0/0", 1, 3)]
    assert reader.waiting() == 0


def test_gaps_of_compaction_are_passed_and_covered(broker: Broker) -> None:
    topic = compacted(broker)
    reader = Reader(topic, slice_bytes=8)
    for number in range(30):
        topic.write(b"v%d" % number, key=b"k%d" % (number % 3))
        time.sleep(0.15 if number % 10 == 9 else 0)  # the next message begins a segment
    topic.compact()
    left = wait_for_compaction(topic, 30)

    read = reader.run()

    assert 0 < len(left) < 30
    assert read == b"".join(b"v%d\n" % offset for offset in left)
    assert reader.ranges[0][1] == 0 and reader.ranges[-1][2] == 30
    assert reader.waiting() == 0
    assert reader.lost == []


def compacted(broker: Broker) -> Topic:
    """A topic that keeps the latest message of each key, at once when compact() is called."""
    return Topic(
        broker,
        f"compacted-{uuid.uuid4().hex[:8]}",
        min_cleanable_dirty_ratio="0.001",
        segment_ms="100",
        max_compaction_lag_ms="100",
        delete_retention_ms="0",
    )


def wait_for_compaction(topic: Topic, written: int) -> list[int]:
    """The offsets that are left once the cleaner has done its work and rests."""
    ends = time.monotonic() + 60
    left, since = topic.offsets(), time.monotonic()
    while len(left) == written or time.monotonic() - since < 1.5:
        assert time.monotonic() < ends, "the cleaner did nothing"
        time.sleep(0.2)
        if (now := topic.offsets()) != left:
            left, since = now, time.monotonic()
    return left


# -- what retention took -------------------------------------------------------------------


def test_unread_messages_that_expired_are_a_loss_and_reading_goes_on(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 5))
    reader.run()
    topic.write(*messages(5, 20))
    topic.expire_before(12)

    assert reader.waiting() == 15
    assert reader.run() == lines(12, 20)
    assert reader.lost == [("0/0", 5, 12, "expired_in_topic")]
    assert reader.run() == b""
    assert len(reader.lost) == 1, "one loss is recorded once"
    assert reader.waiting() == 0


def test_a_loss_starts_a_run_when_there_is_nothing_left_to_read(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 5))
    reader.run()
    topic.write(*messages(5, 9))
    topic.expire_before(9)

    assert reader.waiting() == 4
    assert reader.run() == b""
    assert reader.lost == [("0/0", 5, 9, "expired_in_topic")]
    assert reader.waiting() == 0
    topic.write(*messages(9, 10))
    topic.expire_before(10)
    reader.run()
    assert reader.lost[1:] == [("0/0", 9, 10, "expired_in_topic")]


def test_what_expired_after_the_losses_were_recorded_is_not_jumped_over(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 5))
    reader.run()
    topic.write(*messages(5, 20))
    with closing(reader.source()) as source:
        reader.note(source)
        topic.expire_before(12)
        assert list(source.read_new(reader.positions)) == []

    assert reader.run() == lines(12, 20)
    assert reader.lost == [("0/0", 5, 12, "expired_in_topic")]


def test_what_expires_while_it_is_read_is_a_loss_of_the_next_run(
    broker: Broker, reader: Reader, topic: Topic
) -> None:
    # More than librdkafka holds, so that part of it is asked for after it expired.
    big = [b"%04d" % number + b"x" * 250_000 for number in range(300)]
    topic.write(*big)
    reader.slice_bytes = 1_000_000

    read = reader.run(meanwhile=lambda: topic.expire_before(290))
    got = [int(row[:4]) for row in read.splitlines()]
    assert got == list(range(len(got))) and len(got) < 290

    got += [int(row[:4]) for row in reader.run().splitlines()]
    ((_, start, end, reason),) = reader.lost
    assert (end, reason) == (290, "expired_in_topic")
    assert got == [*range(start), *range(290, 300)]


def test_what_expired_before_the_first_read_is_no_loss_but_what_expires_after_it_is(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 10))
    topic.expire_before(4)
    assert reader.waiting() == 6
    assert reader.run() == lines(4, 10)
    assert reader.ranges == [("0/0", 0, 4), ("0/0", 4, 10)]
    assert reader.lost == []

    topic.write(*messages(10, 12))
    topic.expire_before(11)
    assert reader.run() == lines(11, 12)
    assert reader.lost == [("0/0", 10, 11, "expired_in_topic")]


def test_a_first_run_that_dies_before_it_claims_anything_reports_no_loss(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 10))
    topic.expire_before(4)
    with closing(reader.source()) as source:
        reader.note(source)

    assert reader.run() == lines(4, 10)
    assert reader.lost == []


def test_a_new_partition_that_expired_before_it_was_read_is_a_loss(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 2))
    reader.run()
    topic.grow_to(2)
    topic.write(*messages(2, 8), partition=1)
    topic.expire_before(4, partition=1)

    assert reader.run() == lines(6, 8)
    assert reader.lost == [("1/0", 0, 4, "expired_in_topic")]


# -- another topic, a shorter log ----------------------------------------------------------


def test_a_topic_made_anew_with_lower_offsets_is_read_from_its_start(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 20))
    reader.run()
    topic.delete()
    topic.create()
    topic.write(*messages(100, 103))

    assert reader.waiting() == 3
    assert reader.run() == lines(100, 103)
    assert reader.ranges == [("0/0", 0, 20), ("0/1", 0, 3)]
    assert reader.lost == [], "everything of the old one had been read"
    assert reader.run() == b""


def test_a_topic_made_anew_with_higher_offsets_is_told_by_its_id(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 2))
    reader.run()
    topic.delete()
    topic.create()
    topic.write(*messages(100, 110))

    assert reader.run() == lines(100, 110)
    assert reader.ranges[1:] == [("0/1", 0, 10)]


def test_what_was_seen_but_unread_in_a_topic_made_anew_is_a_loss(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 3))
    reader.run()
    topic.write(*messages(3, 8))
    with closing(reader.source()) as source:  # a run that looks, and dies before it reads
        reader.note(source)
    topic.delete()
    topic.create()
    topic.write(*messages(100, 104))
    topic.expire_before(1)

    assert reader.waiting() == 9
    assert reader.run() == lines(101, 104)
    assert sorted(reader.lost) == [
        ("0/0", 3, 8, "topic_recreated"),
        ("0/1", 0, 1, "expired_in_topic"),
    ]
    assert reader.waiting() == 0


def test_a_topic_deleted_with_unread_messages_is_a_loss(topic: Topic, reader: Reader) -> None:
    topic.write(*messages(0, 3))
    reader.run()
    topic.write(*messages(3, 8))
    with closing(reader.source()) as source:
        reader.note(source)
    topic.delete()

    assert reader.waiting() == 5
    assert reader.run() == b""
    assert reader.lost == [("0/0", 3, 8, "topic_gone")]
    assert reader.waiting() == 0
    topic.create()
    topic.write(*messages(100, 101))
    assert reader.run() == lines(100, 101)
    assert reader.ranges[-1] == ("0/1", 0, 1)
    assert len(reader.lost) == 1


def test_a_topic_deleted_after_everything_was_read_is_no_loss(topic: Topic, reader: Reader) -> None:
    topic.write(*messages(0, 3))
    reader.run()
    topic.delete()

    assert reader.waiting() == 0
    assert reader.run() == b""
    assert reader.lost == []


def test_a_topic_made_anew_while_it_is_read_lends_no_message_to_the_old_one(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*(b"old" + b"x" * 250_000 for _ in range(200)))
    reader.slice_bytes = 1_000_000

    def make_anew() -> None:
        topic.delete()
        topic.create()
        topic.write(*(b"new" + b"x" * 250_000 for _ in range(200)))

    reader.run(meanwhile=make_anew)
    reader.run()

    for cut in reader.claimed:
        word = b"old" if cut.slice.epoch == 0 else b"new"
        assert {row[:3] for row in cut.data.splitlines()} == {word}
    new = [cut for cut in reader.claimed if cut.slice.epoch == 1]
    assert sum(len(cut.data.splitlines()) for cut in new) == 200
    read = sum(len(cut.data.splitlines()) for cut in reader.claimed) - 200
    assert reader.lost == [("0/0", read, 200, "topic_recreated")]


def test_a_log_that_ends_earlier_under_the_same_id_is_a_new_epoch(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 10))
    reader.run()
    topic.write(*messages(10, 14))
    with closing(reader.source()) as source:
        reader.note(source)
        before = source._client.identity(10)
    topic.lose_log()
    topic.write(*messages(50, 53))

    assert reader.run() == lines(50, 53)
    assert reader.ranges == [("0/0", 0, 10), ("0/1", 0, 3)]
    assert reader.lost == [("0/0", 10, 14, "topic_truncated")]
    assert reader.claimed[1].tail_sha256 == before, "it is the same topic"
    assert reader.run() == b""
    assert reader.waiting() == 0


# -- reading again -------------------------------------------------------------------------


def test_a_claimed_slice_can_be_read_again_byte_for_byte(topic: Topic, reader: Reader) -> None:
    producer = topic.producer(**{"transactional.id": topic.name})
    producer.init_transactions(30)
    for number in range(6):
        producer.begin_transaction()
        for _ in range(5):
            producer.produce(topic.name, b"%d" % number * 400)
        end_transaction(producer, keeps=number % 3 != 2)
    eventually(lambda: reader.waiting() == 36)
    reader.slice_bytes = 3000
    reader.run()
    topic.write(*messages(0, 5))

    assert len(reader.claimed) > 2
    assert again(reader) == [cut.data for cut in reader.claimed]


def again(reader: Reader) -> list[bytes | None]:
    """All claimed slices, read again by a source that knows nothing of the first read."""
    with closing(reader.source()) as source:
        return [source.read_again(cut.slice, reader.positions) for cut in reader.claimed]


def test_a_slice_that_retention_took_does_not_come_back_as_it_was(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*messages(0, 5))
    reader.run()
    topic.write(*messages(5, 9))
    reader.run()
    topic.expire_before(3)

    first, second = again(reader)
    assert first != reader.claimed[0].data
    assert second == reader.claimed[1].data


def test_a_slice_that_compaction_thinned_does_not_come_back_as_it_was(broker: Broker) -> None:
    topic = compacted(broker)
    reader = Reader(topic)
    for number in range(10):
        topic.write(b"v%d" % number, key=b"k")
        time.sleep(0.15 if number % 4 == 3 else 0)  # the next message begins a segment
    reader.run()
    assert b"v0\n" in reader.claimed[0].data
    topic.compact()
    wait_for_compaction(topic, 10)

    (read,) = again(reader)
    assert read is not None and b"v0\n" not in read


def test_a_slice_of_a_topic_made_anew_is_gone(topic: Topic, reader: Reader) -> None:
    topic.write(*messages(0, 5))
    reader.run()
    topic.delete()
    topic.create()
    topic.write(*messages(0, 5))

    assert again(reader) == [None]


def test_an_empty_first_slice_can_be_read_again(topic: Topic, reader: Reader) -> None:
    topic.write(*messages(0, 5))
    topic.expire_before(3)
    reader.run()

    assert again(reader) == [b"", lines(3, 5)]


# -- brokers that go away ------------------------------------------------------------------


def test_a_broker_killed_in_the_middle_of_a_run_is_waited_for(topic: Topic, reader: Reader) -> None:
    big = [b"%04d" % number + b"x" * 250_000 for number in range(200)]
    topic.write(*big)
    reader.slice_bytes = 4_000_000
    comes_back = threading.Timer(2, topic.broker.start)

    def kill() -> None:
        topic.broker.kill()
        comes_back.start()

    read = reader.run(meanwhile=kill)
    comes_back.join()

    assert [int(row[:4]) for row in read.splitlines()] == list(range(200))
    assert reader.waiting() == 0


def test_a_broker_that_stays_away_is_one_clear_line_and_nothing_is_lost(
    topic: Topic, reader: Reader
) -> None:
    topic.write(*(b"%04d" % number + b"x" * 250_000 for number in range(200)))
    reader.slice_bytes = 4_000_000
    reader.patience = 2

    with pytest.raises(TelemetryError) as caught:
        reader.run(meanwhile=topic.broker.kill)
    with pytest.raises(TelemetryError) as ticked:
        reader.waiting()
    topic.broker.start()

    for error in (caught, ticked):
        said = str(error.value)
        assert "\n" not in said
        assert f"source app: topic {topic.name} of Kafka at {topic.broker.address}: " in said
        assert re.search("refused|Disconnected|closed", said), said
    reader.patience = 30
    reader.run()
    rows = [row for cut in reader.claimed for row in cut.data.splitlines()]
    assert [int(row[:4]) for row in rows] == list(range(200))


# -- for those who watch -------------------------------------------------------------------


def shown(topic: Topic, group: str = GROUP) -> int:
    """The group's offset, as lag tools ask for it."""
    with closing(Consumer({"bootstrap.servers": topic.broker.address, "group.id": group})) as tool:
        (found,) = tool.committed([TopicPartition(topic.name, 0)], timeout=10)
        return int(found.offset)


def test_lag_tools_see_how_far_a_topic_is_ingested(topic: Topic, reader: Reader) -> None:
    topic.write(*messages(0, 50))
    reader.slice_bytes = 50
    reader.run()

    assert len(reader.claimed) > 5
    assert shown(topic) == 50


def test_a_slice_taken_over_never_moves_the_shown_offset_back(topic: Topic, reader: Reader) -> None:
    topic.write(*messages(0, 50))
    reader.slice_bytes = 50
    reader.run()

    with closing(reader.source()) as source:
        source.acknowledge(reader.claimed[0].slice, {})
    assert shown(topic) == 50
    topic.write(*messages(50, 51))
    late = Slice("app", f"{topic.name}/0", 0, 50, 51)
    with closing(reader.source()) as source:
        source.acknowledge(late, {})
    assert shown(topic) == 51


def test_an_offset_that_cannot_be_shown_is_logged_and_stops_nothing(
    topic: Topic, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    topic.write(*messages(0, 3))
    # A group with members is somebody else's: the broker refuses offsets from outside.
    settings = {"bootstrap.servers": topic.broker.address, "group.id": GROUP}
    with closing(Consumer(settings)) as member, caplog.at_level(logging.WARNING):
        member.subscribe([topic.name])
        ends = time.monotonic() + 30
        while not member.assignment():
            assert time.monotonic() < ends
            member.poll(0.2)
        assert reader.run() == lines(0, 3)

    assert f"group {GROUP} shows an old offset of topic {topic.name}" in caplog.text


def test_an_idle_tick_costs_less_than_a_tenth_of_a_second(broker: Broker) -> None:
    topic = Topic(broker, f"wide-{uuid.uuid4().hex[:8]}", partitions=20)
    reader = Reader(topic)
    for number in range(20):
        topic.write(*messages(0, 2), partition=number)
    reader.run()
    costs = []
    for _ in range(10):
        begun = time.perf_counter()
        assert reader.waiting() == 0
        costs.append(time.perf_counter() - begun)

    assert min(costs) < 0.1, costs


# -- logins --------------------------------------------------------------------------------


def secure(broker: Broker, topic: Topic, login: Login, password: str) -> KafkaSource:
    settings = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": login.user,
        "sasl.password": password,
        "ssl.ca.location": str(login.certificate),
    }
    connection = Connection(broker.secure_address, settings)
    return KafkaSource("app", connection, topic.name, encoding="otlp_json", patience=20)


def test_a_topic_is_read_over_tls_by_who_can_log_in(
    broker: Broker, topic: Topic, login: Login
) -> None:
    topic.write(*messages(0, 3))
    with closing(secure(broker, topic, login, PASSWORD)) as source:
        (cut,) = source.read_new({})

    assert cut.data == lines(0, 3)


def test_a_wrong_password_is_said_at_once_without_the_password(
    broker: Broker, topic: Topic, login: Login
) -> None:
    begun = time.monotonic()
    with (
        closing(secure(broker, topic, login, "wrong-horse")) as source,
        pytest.raises(TelemetryError, match=r"[Aa]uthentication failed") as caught,
    ):
        list(source.read_new({}))

    assert time.monotonic() - begun < 5
    assert broker.secure_address in str(caught.value)
    assert "wrong-horse" not in str(caught.value) and PASSWORD not in str(caught.value)


def test_a_certificate_that_nobody_vouches_for_is_refused(
    broker: Broker, topic: Topic, login: Login, tmp_path: Path
) -> None:
    other = make_login(tmp_path, "other", "another-secret")
    wrong = replace(login, certificate=other.certificate)
    with (
        closing(secure(broker, topic, wrong, PASSWORD)) as source,
        pytest.raises(TelemetryError, match="certificate verify failed"),
    ):
        source.waiting({})


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"no.such.setting": "1"}, r"No such configuration property: .*no\.such\.setting"),
        ({"security.protocol": "carrier-pigeon"}, r"security\.protocol"),
        ({"ssl.key.pem": "-----SECRET-----", "security.protocol": "SSL"}, r"ssl\.key\.pem"),
    ],
)
def test_settings_that_cannot_be_used_are_named_without_their_value(
    settings: dict[str, str], problem: str
) -> None:
    source = KafkaSource("app", Connection("127.0.0.1:1", settings), "events")
    with closing(source), pytest.raises(TelemetryError, match=problem) as caught:
        source.waiting({})

    assert "telemetry.yaml" in str(caught.value)
    assert "SECRET" not in str(caught.value) and "pigeon" not in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the guide -----------------------------------------------------------------------------


def guide(number: int) -> str:
    """A block of YAML of docs/kafka.md."""
    text = (REPOSITORY / "docs" / "kafka.md").read_text()
    return re.findall(r"```yaml\n(.*?)```", text, re.S)[number]


@pytest.mark.needs("otelcol/otelcol")
def test_the_collector_takes_the_configuration_of_the_guide(tmp_path: Path) -> None:
    written = guide(0).replace("/var/lib/otelcol/kafka", str(tmp_path))
    (tmp_path / "collector.yaml").write_text(written)
    command = [str(SERVICES / "otelcol" / "otelcol"), "validate", "--config", "collector.yaml"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"KAFKA_BROKERS": "127.0.0.1:9092"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", [1, 2])
def test_the_pipeline_takes_the_sources_of_the_guide(tmp_path: Path, number: int) -> None:
    (tmp_path / "telemetry.yaml").write_text(guide(number))

    (source,) = load_config(tmp_path / "telemetry.yaml").sources.values()
    assert source.kind == "kafka"


# -- into the warehouse --------------------------------------------------------------------


POLICY = """\
sources:
  kafka_events:
    kind: kafka
    brokers: env:KAFKA_BROKERS
    topic: {topic}
    encoding: {encoding}
    group: into-the-warehouse
"""


def use_topic(
    project: Project, topic: Topic, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", topic.broker.address)
    policy = project.config_file.read_text()
    sources = re.compile(r"^sources:\n(  .*\n|\n)+", re.M)
    assert sources.search(policy)
    written = POLICY.format(topic=topic.name, encoding=encoding)
    project.config_file.write_text(sources.sub(written + "\n", policy, count=1))


def as_message(encoding: str, records: list[dict[str, Any]]) -> bytes:
    """One export request, as the Collector writes it in an encoding."""
    if encoding == "otlp_json":
        return line(*records)
    request = ExportLogsServiceRequest()
    logs = request.resource_logs.add().scope_logs.add().log_records
    for one in records:
        added = logs.add(event_name=one["eventName"], time_unix_nano=int(one["timeUnixNano"]))
        for pair in one["attributes"]:
            added.attributes.add(key=pair["key"]).value.string_value = pair["value"]["stringValue"]
    return request.SerializeToString()


@pytest.mark.parametrize("encoding", ["otlp_json", "otlp_proto"])
def test_events_of_a_topic_land_exactly_once(
    project: Project, client: Client, topic: Topic, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    use_topic(project, topic, encoding, monkeypatch)
    now_ms = int(time.time() * 1000)
    batches = [
        as_message(
            encoding,
            [record("page_viewed", common(user), now_ms - 1000) for user in range(20)],
        )
        for _ in range(10)
    ]
    topic.write(*batches[:6], None, b"garbage")
    first = ingest(project, "kafka_events", "first")
    topic.write(*batches[6:], batches[0])  # a Collector that crashed sends a batch again
    second = ingest(project, "kafka_events", "second")
    third = ingest(project, "kafka_events", "third")

    assert (first.received, first.accepted, first.rejected) == (121, 120, {"undecodable": 1})
    assert (second.received, second.accepted, second.duplicates) == (100, 80, 20)
    assert (third.slices, third.waiting) == (0, 0)
    (stored,) = client.query(
        "SELECT count(), uniqExact(event_id) FROM raw.product_telemetry_events"
    ).result_rows
    assert stored == (200, 200)
    assert shown(topic, "into-the-warehouse") == 13


@pytest.mark.needs("otelcol/otelcol")
@pytest.mark.parametrize("encoding", ["otlp_json", "otlp_proto"])
def test_what_the_collector_exports_lands(
    project: Project,
    client: Client,
    topic: Topic,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    encoding: str,
) -> None:
    use_topic(project, topic, encoding, monkeypatch)
    exporter = {
        "brokers": [topic.broker.address],
        "logs": {"topic": topic.name, "encoding": encoding},
        "producer": {"required_acks": "all", "compression": "zstd"},
        "sending_queue": {"enabled": False},  # an answer of 200 means that the broker has it
    }
    sent = [common(number) for number in range(5)]
    with running_collector(tmp_path, {"kafka": exporter}) as collector:
        for attributes in sent:
            event = record("page_viewed", attributes, int(time.time() * 1000))
            answer = httpx.post(
                collector.logs_url,
                content=line(event),
                headers={"content-type": "application/json"},
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text

    report = ingest(project, "kafka_events", "first")

    assert (report.received, report.accepted) == (5, 5)
    stored = client.query("SELECT event_id FROM raw.product_telemetry_events").result_rows
    assert {str(row[0]) for row in stored} == {attributes["event.id"] for attributes in sent}


def test_a_loss_in_a_topic_stands_in_the_ledger(
    project: Project, client: Client, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_topic(project, topic, "otlp_json", monkeypatch)
    topic.write(*messages(0, 3))
    ingest(project, "kafka_events", "first")
    topic.write(*messages(3, 9))
    topic.expire_before(7)
    report = ingest(project, "kafka_events", "second")
    ingest(project, "kafka_events", "third")

    assert report.lost_slices == 1
    losses = client.query(
        "SELECT source, partition, epoch, start_offset, end_offset, reason FROM ops.source_losses"
    ).result_rows
    assert [tuple(row) for row in losses] == [
        ("kafka_events", f"{topic.name}/0", 0, 3, 7, "expired_in_topic")
    ]
