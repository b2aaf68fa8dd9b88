"""The Kafka sensor: a run for new offsets of a real topic, none for what is not new."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator

import dagster as dg
import pytest
from clickhouse_connect.driver.client import Client
from services.broker import Broker, Topic, running_broker

from sensors.kafka import kafka_sensor
from telemetry_pipeline.assets.jobs import SOURCE_TAG
from telemetry_pipeline.assets.raw import ingest_events
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.kafka_client import close_clients

pytestmark = [pytest.mark.needs("java"), pytest.mark.needs("kafka/libs")]

SOURCE = "kafka_events"
POLICY = """\
sources:
  kafka_events:
    kind: kafka
    brokers: [{brokers}]
    topic: {topic}
    encoding: otlp_json
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker
    close_clients()


@pytest.fixture
def topic(broker: Broker, project: Project) -> Topic:
    """A topic that the project's one source reads."""
    topic = Topic(broker, f"events-{uuid.uuid4().hex[:8]}", partitions=2)
    written = POLICY.format(brokers=f'"{broker.address}"', topic=topic.name)
    policy, replaced = re.subn(
        r"^sources:\n(  .*\n|\n)+", written + "\n", project.config_file.read_text(), flags=re.M
    )
    assert replaced == 1
    project.config_file.write_text(policy)
    return topic


def tick(instance: dg.DagsterInstance) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance) as context:
        result = kafka_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def test_an_empty_topic_starts_nothing(
    topic: Topic, client: Client, instance: dg.DagsterInstance
) -> None:
    result = tick(instance)
    assert not result.run_requests
    assert "nothing new" in str(result.skip_reason)


def test_new_messages_start_one_run_and_once_ingested_none(
    topic: Topic, project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    topic.write(b'{"resourceLogs":[]}', b'{"resourceLogs":[]}', partition=1)
    (request,) = tick(instance).run_requests or []
    assert request.tags[SOURCE_TAG] == SOURCE
    assert request.tags["telemetry/waiting"] == "2 messages"
    assert request.run_config["ops"]["ingest"]["config"] == {"source": SOURCE}

    ingest(project, SOURCE, "test")

    assert not tick(instance).run_requests


def test_the_marker_of_a_transaction_starts_one_run_and_not_runs_for_ever(
    topic: Topic, project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    producer = topic.producer(**{"transactional.id": topic.name})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic.name, b"never", partition=0)
    producer.flush(30)
    assert not tick(instance).run_requests, "an open transaction is nothing new"
    producer.abort_transaction(30)
    ends = time.monotonic() + 20
    while not tick(instance).run_requests:  # the marker follows the answer
        assert time.monotonic() < ends

    ingest(project, SOURCE, "test")

    assert not tick(instance).run_requests


def test_a_broker_that_is_away_is_one_clear_line(
    topic: Topic, broker: Broker, client: Client, instance: dg.DagsterInstance
) -> None:
    broker.kill()
    try:
        begun = time.monotonic()
        with pytest.raises(Exception, match=f"Kafka at {broker.address}: .*refused"):
            tick(instance)
        assert time.monotonic() - begun < 10, "other sensors wait for this one"
    finally:
        broker.start()


def test_an_idle_tick_costs_less_than_a_tenth_of_a_second(
    topic: Topic, client: Client, instance: dg.DagsterInstance
) -> None:
    costs = []
    for _ in range(9):
        begun = time.perf_counter()
        tick(instance)
        costs.append(time.perf_counter() - begun)
    assert min(costs) < 0.1, costs


def test_the_lag_is_shown_with_the_asset(
    topic: Topic, client: Client, instance: dg.DagsterInstance
) -> None:
    topic.write(b'{"resourceLogs":[]}', b'{"resourceLogs":[]}')

    result = dg.materialize([ingest_events], instance=instance)

    (events,) = [
        event
        for event in result.asset_materializations_for_node("ingest")
        if event.asset_key.path[-1] == "product_telemetry_events"
    ]
    assert events.metadata[f"{SOURCE}/waiting_messages"].value == 0
    assert events.metadata["slices"].value == 1
