"""The services that other tests rely on do what their names say."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from log_records import common, line, record

from services.broker import running_broker
from services.collector import running_collector
from services.streams import running_redis


@pytest.mark.needs("java")
@pytest.mark.needs("kafka/libs")
@pytest.mark.needs("otelcol/otelcol")
def test_what_the_collector_exports_to_kafka_can_be_consumed(tmp_path: Path) -> None:
    ids = [f"00000000-0000-4000-8000-{number:012}" for number in range(3)]
    with running_broker(tmp_path) as broker:
        kafka = {
            "brokers": [broker.address],
            "logs": {"topic": "events", "encoding": "otlp_json"},
            "producer": {"required_acks": "all"},
            "sending_queue": {"enabled": False},  # an answer of 200 means that the broker has it
        }
        with running_collector(tmp_path, {"kafka": kafka}) as collector:
            for event_id in ids:
                event = record("session.start", common(event__id=event_id), 1_700_000_000_000)
                sent = httpx.post(
                    collector.logs_url,
                    content=line(event),
                    headers={"content-type": "application/json"},
                    trust_env=False,
                )
                assert sent.status_code == 200, sent.text

        assert broker.end_offset("events") == len(ids)
        # A broker that was killed still has what it acknowledged.
        broker.kill()
        broker.start()
        messages = [json.loads(message) for message in broker.consume("events", len(ids))]

    consumed = [message["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0] for message in messages]
    assert [consumed_id(entry) for entry in consumed] == ids
    assert {entry["eventName"] for entry in consumed} == {"session.start"}


def consumed_id(entry: dict[str, list[dict[str, dict[str, str]]]]) -> str:
    (found,) = [pair["value"] for pair in entry["attributes"] if pair["key"] == "event.id"]
    return found["stringValue"]


@pytest.mark.needs("redis-server")
def test_redis_streams_have_groups_that_remember_what_was_not_acknowledged(tmp_path: Path) -> None:
    with running_redis(tmp_path) as redis:
        assert redis.say("XADD", "events", "1-0", "event", "{}") == "$3\r\n1-0"
        assert redis.say("XGROUP", "CREATE", "events", "ingest", "0") == "+OK"
        read = redis.say("XREADGROUP", "GROUP", "ingest", "me", "STREAMS", "events", ">")
        assert "1-0" in read and "{}" in read
        assert redis.say("XPENDING", "events", "ingest").startswith("*4\r\n:1\r\n")
        assert redis.say("XACK", "events", "ingest", "1-0") == ":1"
        assert redis.say("XPENDING", "events", "ingest").startswith("*4\r\n:0\r\n")
