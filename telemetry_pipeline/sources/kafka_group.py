"""A consumer group's offsets of one topic: only lag tools read them, the ledger has its own."""

from __future__ import annotations

import logging
from concurrent.futures import Future, wait
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition

from telemetry_pipeline.sources.kafka_client import Connection, admin_of

log = logging.getLogger(__name__)

#: How long one request to the group's coordinator may take, and how long close() waits for it.
PATIENCE_SECONDS = 5.0


class GroupOffsets:
    """Shows how far a topic is ingested. Never raises for a broker's sake: failures are logged.

    One request is under way at a time, so that offsets arrive in order; those that come meanwhile
    wait, the latest of each partition.
    """

    def __init__(self, source: str, connection: Connection, topic: str, group: str) -> None:
        self._source = source
        self._connection = connection
        self._topic = topic
        self._group = group
        self._to_show: dict[int, int] = {}
        self._under_way: Future[Any] | None = None

    def show(self, number: int, offset: int) -> None:
        """Show `offset` for a partition, without waiting for the broker."""
        self._to_show[number] = offset
        if self._under_way is None or self._under_way.done():
            self._send()

    def shown(self, number: int) -> int:
        """The offset that the group shows; 0 when there is none or the broker does not say."""
        if number in self._to_show:
            return self._to_show[number]
        self._settle()
        wanted = ConsumerGroupTopicPartitions(self._group, [TopicPartition(self._topic, number)])
        try:
            futures = admin_of(self._connection).client.list_consumer_group_offsets(
                [wanted], request_timeout=PATIENCE_SECONDS
            )
            (found,) = futures[self._group].result().topic_partitions
        except KafkaException as caught:
            self._warn(caught)
            return 0
        return int(max(found.offset, 0))

    def close(self) -> None:
        """Send what still waits. An offset that was not shown is shown with the next slice."""
        self._settle()
        if self._to_show:
            self._send()
            self._settle()

    def _send(self) -> None:
        self._settle()
        offsets = [TopicPartition(self._topic, *item) for item in self._to_show.items()]
        self._to_show.clear()
        (self._under_way,) = (
            admin_of(self._connection)
            .client.alter_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(self._group, offsets)],
                request_timeout=PATIENCE_SECONDS,
            )
            .values()
        )

    def _settle(self) -> None:
        if self._under_way is None:
            return
        wait([self._under_way], timeout=2 * PATIENCE_SECONDS)
        try:
            for at in self._under_way.result(timeout=0).topic_partitions:
                if at.error is not None:
                    raise KafkaException(at.error)
        except (KafkaException, TimeoutError) as caught:
            self._warn(caught)
        self._under_way = None

    def _warn(self, caught: Exception) -> None:
        said = caught.args[0].str() if isinstance(caught, KafkaException) else "no answer"
        log.warning(
            "source %s: group %s shows an old offset of topic %s: %s",
            self._source,
            self._group,
            self._topic,
            said,
        )
