"""A Kafka broker: one KRaft node that is its own controller, and Kafka's own tools."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from services.process import SERVICES, Service, free_port

CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"
STARTED = "Kafka Server started"


@dataclass(frozen=True)
class Login:
    """Who may log in over SASL/PLAIN, and the files of a TLS listener signed by itself."""

    user: str
    password: str
    keystore: Path
    certificate: Path

    def properties(self) -> str:
        jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        return f"""\
ssl.keystore.type=PKCS12
ssl.keystore.location={self.keystore}
ssl.keystore.password={self.password}
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config={jaas} user_{self.user}="{self.password}";
"""


def make_login(folder: Path, user: str, password: str) -> Login:
    login = Login(user, password, folder / "broker.p12", folder / "broker.pem")
    keytool = ["keytool", "-keystore", str(login.keystore), "-storepass", password]
    named = ["-alias", "broker", "-dname", "CN=127.0.0.1", "-ext", "SAN=IP:127.0.0.1"]
    _output([*keytool, "-genkeypair", "-keyalg", "RSA", "-storetype", "PKCS12", *named])
    export = ["-exportcert", "-rfc", "-alias", "broker", "-file", str(login.certificate)]
    _output([*keytool, *export])
    return login


class Broker(Service):
    """Creates topics when they are first written to, with one partition.

    With a login there is a second listener, SASL_SSL, at `secure_address`.
    """

    def __init__(self, folder: Path, login: Login | None = None) -> None:
        port, controller, secure = free_port(), free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.secure_address = f"127.0.0.1:{secure}"
        self.data = folder / "data"
        self._properties = folder / "server.properties"
        also = f",SASL_SSL://{self.secure_address}" if login else ""
        self._properties.write_text(
            f"""\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{also}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
log.dirs={self.data}
log.cleaner.backoff.ms=200
log.initial.task.delay.ms=0
num.partitions=1
default.replication.factor=1
min.insync.replicas=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
"""
            + (login.properties() if login else "")
        )
        super().__init__(
            java("kafka.Kafka", str(self._properties)), folder / "broker.log", self._has_started
        )

    def format(self) -> None:
        """Make the data folder; once, before the first start."""
        command = java("kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER)
        _output([*command, "-c", str(self._properties)])

    def start(self, patience: float = 60) -> None:
        self.log.write_bytes(b"")  # what an earlier start said is no sign of this one
        super().start(patience)

    def consume(self, topic: str, messages: int) -> list[str]:
        """The first `messages` of the topic as text, as Kafka's console consumer prints them."""
        tool = java("org.apache.kafka.tools.consumer.ConsoleConsumer", level="error")
        tool += ["--bootstrap-server", self.address, "--topic", topic, "--from-beginning"]
        tool += ["--max-messages", str(messages), "--timeout-ms", "30000"]
        return _output(tool).splitlines()

    def end_offset(self, topic: str) -> int:
        """Where the topic's one partition ends."""
        tool = java("org.apache.kafka.tools.GetOffsetShell", level="error")
        said = _output([*tool, "--bootstrap-server", self.address, "--topic", topic])
        return int(said.strip().removeprefix(f"{topic}:0:"))

    def _has_started(self) -> bool:
        return STARTED in self.log.read_text(errors="replace")


def java(program: str, *arguments: str, level: str = "info") -> list[str]:
    """The command line of one of Kafka's programs, with little memory and quick to start."""
    options = ["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    options.append(f"-Dorg.slf4j.simpleLogger.defaultLogLevel={level}")
    return ["java", *options, "-cp", f"{SERVICES / 'kafka' / 'libs'}/*", program, *arguments]


class Topic:
    """One topic, and the means to do to it what happens to topics."""

    def __init__(self, broker: Broker, name: str, partitions: int = 1, **settings: str) -> None:
        self.name = name
        self.broker = broker
        self._quiet = {"bootstrap.servers": broker.address, "log_level": 0}
        self._admin = AdminClient(self._quiet)
        self._settings = {key.replace("_", "."): value for key, value in settings.items()}
        self.create(partitions)

    def create(self, partitions: int = 1) -> None:
        wanted = NewTopic(self.name, partitions, 1, config=self._settings)
        ends = time.monotonic() + 20
        while True:  # a topic that was just deleted is still there for a moment
            try:
                self._admin.create_topics([wanted])[self.name].result()
                break
            except KafkaException:
                assert time.monotonic() < ends
                time.sleep(0.05)

    def delete(self) -> None:
        self._admin.delete_topics([self.name])[self.name].result()

    def grow_to(self, partitions: int) -> None:
        wanted = [NewPartitions(self.name, partitions)]
        self._admin.create_partitions(wanted)[self.name].result()

    def expire_before(self, offset: int, partition: int = 0) -> None:
        """What retention does, at once."""
        upto = TopicPartition(self.name, partition, offset)
        for done in self._admin.delete_records([upto]).values():
            done.result()

    def compact(self) -> None:
        """From now on, keep the latest message of each key only."""
        policy = ConfigEntry("cleanup.policy", "compact")
        policy.incremental_operation = AlterConfigOpType.SET
        wanted = ConfigResource(ConfigResource.Type.TOPIC, self.name, incremental_configs=[policy])
        for done in self._admin.incremental_alter_configs([wanted]).values():
            done.result()

    def write(self, *values: bytes | None, partition: int = 0, key: bytes | None = None) -> None:
        producer = self.producer()
        for value in values:
            producer.produce(self.name, value=value, key=key, partition=partition)
        assert producer.flush(30) == 0

    def producer(self, **settings: Any) -> Producer:
        return Producer(self._quiet | {"acks": "all", "linger.ms": 1} | settings)

    def offsets(self, partition: int = 0) -> list[int]:
        """The offsets that a plain consumer finds, from the first to the end of the log."""
        mine = {"group.id": "looks", "enable.auto.commit": False, "enable.partition.eof": True}
        found = []
        with closing(Consumer(self._quiet | mine)) as consumer:
            at = TopicPartition(self.name, partition)
            low, _ = consumer.get_watermark_offsets(at, timeout=10)
            consumer.assign([TopicPartition(self.name, partition, low)])
            while (message := consumer.poll(10)) is not None and message.error() is None:
                found.append(message.offset())
        return found

    def lose_log(self, partition: int = 0) -> None:
        """What an unclean election does: the log ends earlier, under the same topic id."""
        self.broker.stop()
        folder = self.broker.data / f"{self.name}-{partition}"
        kept = folder / "partition.metadata"
        for file in folder.iterdir():
            if file != kept:
                file.unlink()
        for file in self.broker.data.glob("*-offset-checkpoint"):
            file.unlink()
        (self.broker.data / ".kafka_cleanshutdown").unlink(missing_ok=True)
        self.broker.start()


@contextmanager
def running_broker(folder: Path, login: Login | None = None) -> Iterator[Broker]:
    broker = Broker(folder, login)
    broker.format()
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
