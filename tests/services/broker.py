"""A Kafka broker: one KRaft node that is its own controller, and Kafka's own tools."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.process import SERVICES, Service, free_port

CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"
STARTED = "Kafka Server started"


class Broker(Service):
    """Creates topics when they are first written to, with one partition."""

    def __init__(self, folder: Path) -> None:
        port, controller = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self._properties = folder / "server.properties"
        self._properties.write_text(
            f"""\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
log.dirs={folder / "data"}
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


@contextmanager
def running_broker(folder: Path) -> Iterator[Broker]:
    broker = Broker(folder)
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
