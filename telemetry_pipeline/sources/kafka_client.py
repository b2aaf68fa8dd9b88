"""One Kafka topic over librdkafka: which topic it is, how far it reaches, the messages of a range.

librdkafka reconnects by itself. Every call here has a patience in seconds, after which it raises
TelemetryError with one line that names the brokers, the last thing they or the network said, and
no secret.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, NoReturn

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec, TopicDescription

from telemetry_pipeline.errors import TelemetryError

log = logging.getLogger(__name__)

#: Between two looks at a broker that answers "not now" (a leader is being elected, …).
RETRY_SECONDS = 0.2
#: How long a consumer may take to end.
CLOSE_SECONDS = 5.0
#: Messages taken from librdkafka's queue at once.
BATCH_MESSAGES = 1000

#: What all clients start from; telemetry.yaml's `settings` may change it.
COMMON = {
    "client.id": "telemetry-pipeline",
    "reconnect.backoff.ms": "50",
    "reconnect.backoff.max.ms": "1000",
    # What goes wrong is told by our own errors: librdkafka would repeat it on standard error.
    "log_level": "2",
}
#: The consumer's own start: at most some 16 MB wait in its queue, one more answer on the way.
CONSUMER = {
    "queued.max.messages.kbytes": "16384",
    "queued.min.messages": "1000000",
    "fetch.message.max.bytes": str(8 * 1024**2),
    "fetch.max.bytes": str(16 * 1024**2),
    # The end of a partition is told by an empty answer, which the broker holds back this long.
    "fetch.wait.max.ms": "100",
    "fetch.error.backoff.ms": "100",
    # A full queue pauses fetching; with librdkafka's whole second, reading is ten times slower.
    "fetch.queue.backoff.ms": "5",
}
#: What exactly once rests on: offsets are the ledger's, and an offset that the topic no longer
#: has is an error to be seen.
FIXED = {
    "isolation.level": "read_committed",
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "auto.offset.reset": "error",
    "enable.partition.eof": "true",
}

#: Errors after which trying again is useless. Not among them: a failed TLS handshake, which is also
#: what a broker that stops looks like, and a group that may not be used, which only lag tools miss.
REFUSALS = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._FATAL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError._UNSUPPORTED_FEATURE,
    }
)
OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
UNKNOWN = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)


@dataclass(frozen=True)
class Connection:
    """Where the brokers are and how to log in; `settings` are librdkafka's, secrets among them."""

    brokers: str
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)

    def configuration(self) -> dict[str, Any]:
        return COMMON | dict(self.settings) | {"bootstrap.servers": self.brokers}


@dataclass(frozen=True)
class Offsets:
    """Of one partition: the first offset kept, the last stable one (where committed messages
    end), and the end of the log (an open transaction lies between the two)."""

    low: int
    stable: int
    high: int


@dataclass(frozen=True)
class Topic:
    """A topic as it is now. `identity`: SHA-256 of the topic id, which no other topic ever has."""

    name: str
    identity: str
    offsets: Mapping[int, Offsets]


class Complaints:
    """What librdkafka last said went wrong; it keeps trying and may have mended it since."""

    def __init__(self) -> None:
        self.last: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        # "All brokers are down" says less than what came before it.
        if self.last is None or error.code() != KafkaError._ALL_BROKERS_DOWN:
            self.last = error

    @property
    def is_refusal(self) -> bool:
        return self.last is not None and self.last.code() in REFUSALS


@dataclass(frozen=True)
class Admin:
    client: AdminClient
    complaints: Complaints


_admins: dict[tuple[tuple[str, str], ...], Admin] = {}
_admins_lock = threading.Lock()


def close_clients() -> None:
    """Let go of the connections that are kept between the ticks of a sensor."""
    with _admins_lock:
        _admins.clear()


atexit.register(close_clients)


def _admin_of(connection: Connection) -> Admin:
    """The one administrative client of this process for a connection.

    A tick asks every few seconds; connecting each time would cost more than asking.
    """
    configuration = connection.configuration()
    key = tuple(sorted((name, str(value)) for name, value in configuration.items()))
    with _admins_lock:
        if key not in _admins:
            complaints = Complaints()
            client = AdminClient(configuration | {"error_cb": complaints.note})
            _admins[key] = Admin(client, complaints)
        return _admins[key]


class TopicClient:
    """One topic for one source. Connects when it is first asked; close() ends its consumer."""

    def __init__(self, source: str, connection: Connection, topic: str, group: str) -> None:
        self._source = source
        self._connection = connection
        self._topic = topic
        self._group = group
        self._complaints = Complaints()
        self._consumer: Consumer | None = None

    # -- what is there ----------------------------------------------------------------------

    def topic(self, patience: float) -> Topic | None:
        """The topic with the offsets of all its partitions; None when there is no such topic."""
        ends = self._begin(patience)
        while True:
            before = self._describe(ends)
            if before is None:
                return None
            numbers = [partition.id for partition in before.partitions]
            offsets = self._offsets(numbers, ends)
            after = self._describe(ends)
            # A topic recreated in between would lend its offsets to the one before it.
            if (
                offsets is not None
                and after is not None
                and str(after.topic_id) == str(before.topic_id)
            ):
                return Topic(self._topic, _identity_of(before), offsets)
            if time.monotonic() > ends:
                raise TelemetryError(f"{self._place}: it changes whenever it is looked at")
            time.sleep(RETRY_SECONDS)

    def identity(self, patience: float) -> str | None:
        """The identity of the topic now."""
        described = self._describe(self._begin(patience))
        return None if described is None else _identity_of(described)

    def _begin(self, patience: float) -> float:
        """When the patience of a call ends; what was wrong before it is forgotten."""
        self._open_admin().complaints.last = None
        return time.monotonic() + patience

    def _describe(self, ends: float) -> TopicDescription | None:
        while True:
            try:
                futures = self._ask("describe_topics", TopicCollection([self._topic]), ends=ends)
                (future,) = futures.values()
                described: TopicDescription = future.result()
                return described
            except KafkaException as caught:
                error = _error_of(caught)
                if error.code() in UNKNOWN:
                    return None
                self._try_again(error, ends)

    def _offsets(self, numbers: Iterable[int], ends: float) -> dict[int, Offsets] | None:
        """None when a partition went away since it was listed."""
        partitions = [TopicPartition(self._topic, number) for number in numbers]
        bounds = (
            (OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED),
            (OffsetSpec.latest(), IsolationLevel.READ_COMMITTED),
            (OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED),
        )
        while True:
            try:
                found: list[dict[int, int]] = []
                for spec, isolation in bounds:
                    futures = self._ask(
                        "list_offsets",
                        dict.fromkeys(partitions, spec),
                        ends=ends,
                        isolation_level=isolation,
                    )
                    found.append({key.partition: f.result().offset for key, f in futures.items()})
            except KafkaException as caught:
                error = _error_of(caught)
                if error.code() in UNKNOWN:
                    return None
                self._try_again(error, ends)
                continue
            low, stable, high = found
            return {number: Offsets(low[number], stable[number], high[number]) for number in low}

    def _ask(
        self, request: str, argument: Any, *, ends: float, **more: Any
    ) -> dict[Any, Future[Any]]:
        """The answered futures of an administrative request. A refusal is told at once: the
        request itself would only time out."""
        admin = self._open_admin()
        timeout = max(RETRY_SECONDS, ends - time.monotonic())
        futures: dict[Any, Future[Any]] = getattr(admin.client, request)(
            argument, request_timeout=timeout, **more
        )
        while wait(futures.values(), timeout=0.2).not_done:
            admin.client.poll(0)
            if admin.complaints.is_refusal:
                self._fail(admin.complaints.last)
        admin.client.poll(0)
        return futures

    def _open_admin(self) -> Admin:
        try:
            return _admin_of(self._connection)
        except (KafkaException, TypeError, ValueError) as caught:
            raise self._unusable(caught) from None

    def _try_again(self, error: KafkaError, ends: float) -> None:
        """Wait a little where it may help; raise where it cannot or time is up."""
        if error.code() in REFUSALS:
            self._fail(error)
        if error.code() == KafkaError._TIMED_OUT or time.monotonic() > ends:
            # "Connection refused" says more than "timed out" or "no leader".
            self._fail(self._open_admin().complaints.last or error)
        time.sleep(RETRY_SECONDS)

    # -- messages -----------------------------------------------------------------------------

    def messages(
        self, number: int, start: int, end: int, patience: float
    ) -> Iterator[tuple[int, bytes | None]]:
        """The committed messages of [start, end), each with the offset reached by it.

        The last offset is `end`, also when control records, aborted messages or gaps of compaction
        stand before it: it then comes without a message. Ends before `end` only when retention took
        the next offset or the topic is gone. `patience`: how long nothing at all may come.
        """
        consumer = self._open_consumer()
        consumer.assign([TopicPartition(self._topic, number, start)])
        reached, heard = start, time.monotonic()
        self._complaints.last = None
        try:
            while reached < end:
                batch = self._batch(consumer)
                for message in batch:
                    error = message.error()
                    if error is not None and error.code() in OUT_OF_RANGE:
                        log.warning("source %s: %s", self._source, error.str())
                        return
                    if error is not None and error.code() in UNKNOWN:
                        if self.identity(patience) is None:
                            return
                        continue
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        self._note(error)
                        continue
                    heard, self._complaints.last = time.monotonic(), None
                    offset = message.offset() or 0
                    if error is None and offset < end:
                        reached = offset + 1
                        yield reached, message.value()
                    elif offset > reached:
                        reached = min(offset, end)
                        yield reached, None
                    heard = time.monotonic()  # whoever asks may have taken its time
                    if reached >= end:
                        return
                if self._complaints.is_refusal or time.monotonic() - heard > patience:
                    self._fail(self._complaints.last, silent_for=patience)
        finally:
            if self._consumer is consumer:  # not closed meanwhile
                consumer.unassign()

    def _batch(self, consumer: Consumer) -> list[Message]:
        """What has come; waits for the first message only."""
        first = consumer.poll(0.5)
        return [] if first is None else [first, *consumer.consume(BATCH_MESSAGES, timeout=0)]

    def _note(self, error: KafkaError) -> None:
        log.debug("source %s: %s", self._source, error.str())
        self._complaints.note(error)

    # -- for those who watch ------------------------------------------------------------------
    # The administrative client could do this, too, but librdkafka 2.16 aborts the process when a
    # broker goes away during such a request to a group's coordinator (its issue 4605).

    def commit(self, number: int, offset: int) -> None:
        """Show the group's offset to lag tools, without waiting; nothing of ours reads it. A
        failure is logged."""
        at = TopicPartition(self._topic, number, offset)
        try:
            self._open_consumer().commit(offsets=[at], asynchronous=True)
        except KafkaException as caught:
            self._note_commit(_error_of(caught), [])

    def committed(self, number: int, patience: float) -> int:
        """The group's offset; 0 when there is none or the broker does not say."""
        wanted = [TopicPartition(self._topic, number)]
        try:
            (found,) = self._open_consumer().committed(wanted, timeout=patience)
        except KafkaException as caught:
            self._note_commit(_error_of(caught), [])
            return 0
        return int(max(found.offset, 0))

    def _note_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        errors = [error, *(partition.error for partition in partitions)]
        said = next((error.str() for error in errors if error is not None), None)
        if said is not None:
            log.warning(
                "source %s: group %s shows an old offset of topic %s: %s",
                self._source,
                self._group,
                self._topic,
                said,
            )

    def close(self) -> None:
        """End the consumer, after the offsets that it has yet to show.

        Without a broker librdkafka waits for those without end; then it is left to do so.
        """
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        ending = threading.Thread(target=consumer.close, name="kafka-close", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)
        if ending.is_alive():
            log.warning("source %s: its Kafka consumer has not ended yet", self._source)

    def _open_consumer(self) -> Consumer:
        if self._consumer is None:
            configuration = CONSUMER | self._connection.configuration() | FIXED
            try:
                self._consumer = Consumer(
                    configuration
                    | {
                        "group.id": self._group,
                        "error_cb": self._complaints.note,
                        "on_commit": self._note_commit,
                    }
                )
            except (KafkaException, TypeError, ValueError) as caught:
                raise self._unusable(caught) from None
        return self._consumer

    # -- errors -------------------------------------------------------------------------------

    @property
    def _place(self) -> str:
        return f"source {self._source}: topic {self._topic} of Kafka at {self._connection.brokers}"

    def _fail(self, error: KafkaError | None, silent_for: float | None = None) -> NoReturn:
        said = "no answer" if error is None else error.str()
        if silent_for is not None and (error is None or error.code() not in REFUSALS):
            said = f"nothing came for {silent_for:g} s, {said}"
        raise TelemetryError(f"{self._place}: {self._without_secrets(said)}")

    def _unusable(self, caught: Exception) -> TelemetryError:
        said = _error_of(caught).str() if isinstance(caught, KafkaException) else str(caught)
        return TelemetryError(
            f"source {self._source}: its settings in telemetry.yaml: {self._without_secrets(said)}"
        )

    def _without_secrets(self, text: str) -> str:
        """librdkafka quotes values that it cannot take; only names may be repeated."""
        for value in sorted(self._connection.settings.values(), key=len, reverse=True):
            if len(value) > 3:
                text = text.replace(value, "…")
        return " ".join(text.split())


def _error_of(caught: KafkaException) -> KafkaError:
    error: KafkaError = caught.args[0]
    return error


def _identity_of(described: TopicDescription) -> str:
    return hashlib.sha256(str(described.topic_id).encode()).hexdigest()
