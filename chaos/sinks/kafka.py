"""A Kafka topic on a real broker: one OTLP export request a message, as the Collector writes it."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from services.broker import Broker

from chaos.events import Event
from chaos.sinks.wire import otlp_json, otlp_proto
from telemetry_pipeline.demo.wire import EdgeIds
from telemetry_pipeline.errors import TelemetryError

TOPIC = "chaos.events"
PARTITIONS = 3
_PATIENCE = 120.0
#: librdkafka tells of every lost connection: here that is what is wanted.
_QUIET = logging.getLogger("chaos.librdkafka")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


class ChaosKafka:
    """The producer waits for the broker as long as it takes: what `write` returns from was kept."""

    name = "chaos_kafka"
    has_service = True
    variables: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, folder: Path, edge_ids: EdgeIds, encoding: str = "otlp_proto") -> None:
        if shutil.which("java") is None:
            raise TelemetryError("chaos: java is not on PATH; install Java 17 or newer")
        self._edge_ids = edge_ids
        self._encoding = encoding
        folder.mkdir(parents=True)
        self._broker = Broker(folder)
        self._producer: Producer | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "kind": "kafka",
            "brokers": [self._broker.address],
            "topic": TOPIC,
            "encoding": self._encoding,
        }

    def start(self) -> None:
        self._broker.format()
        self._broker.start()
        admin = AdminClient(self._common)
        made = admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
        made[TOPIC].result(_PATIENCE)

    def write(self, batch: Sequence[Event]) -> None:
        """One message; produced again under a new producer if this one cannot go on."""
        if self._encoding == "otlp_json":
            message = otlp_json(batch, self._edge_ids)
        else:
            message = otlp_proto(batch, self._edge_ids).SerializeToString()
        ends = time.monotonic() + _PATIENCE
        while not self._is_kept(message):
            self._producer = None
            if time.monotonic() > ends:
                raise TelemetryError(f"chaos: the broker kept nothing for {_PATIENCE:.0f} s")

    def copy_back(self, rng: Random) -> None:
        """Nothing goes back under its old offset."""

    def kill(self) -> None:
        self._broker.kill()

    def restart(self) -> None:
        self._broker.start()

    def deliveries(self) -> Counter[str] | None:
        """Read from the topic: a message whose acknowledgement was lost may stand there twice."""
        found: Counter[str] = Counter()
        consumer = Consumer(self._common | {"group.id": "chaos-count", "enable.auto.commit": False})
        try:
            for partition in range(PARTITIONS):
                here = TopicPartition(TOPIC, partition)
                low, high = consumer.get_watermark_offsets(here, timeout=_PATIENCE)
                consumer.assign([TopicPartition(TOPIC, partition, low)])
                while consumer.position([here])[0].offset < high and low < high:
                    _count(consumer.consume(500, timeout=5.0), found)
        finally:
            consumer.close()
        return found

    def close(self) -> None:
        self._producer = None
        self._broker.kill()

    @property
    def _common(self) -> dict[str, Any]:
        return {"bootstrap.servers": self._broker.address}

    def _is_kept(self, message: bytes) -> bool:
        errors: list[KafkaError | None] = []
        if self._producer is None:
            self._producer = Producer(
                self._common
                | {
                    "acks": "all",
                    "enable.idempotence": True,
                    "delivery.timeout.ms": int(_PATIENCE * 1000),
                    "reconnect.backoff.max.ms": 500,
                    "linger.ms": 0,
                },
                logger=_QUIET,
            )
        self._producer.produce(TOPIC, message, on_delivery=lambda error, _: errors.append(error))
        self._producer.flush(_PATIENCE)
        return errors == [None]


def _count(messages: Sequence[Message], found: Counter[str]) -> None:
    for message in messages:
        error, value = message.error(), message.value()
        if error is not None:
            raise KafkaException(error)
        if value is None:
            continue
        raw = bytes(value)
        found.update(_ids_in_json(raw) if raw.startswith(b"{") else _ids_in_proto(raw))


def _ids_in_proto(message: bytes) -> Iterator[str]:
    for resource_logs in ExportLogsServiceRequest.FromString(message).resource_logs:
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                for pair in record.attributes:
                    if pair.key == "event.id":
                        yield pair.value.string_value


def _ids_in_json(message: bytes) -> Iterator[str]:
    for resource_logs in json.loads(message)["resourceLogs"]:
        for scope_logs in resource_logs["scopeLogs"]:
            for record in scope_logs["logRecords"]:
                for pair in record["attributes"]:
                    if pair["key"] == "event.id":
                        yield pair["value"]["stringValue"]
