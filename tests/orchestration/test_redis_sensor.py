"""The Redis sensor: a run for new entries, none for idle streams, and a tick that stays cheap."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
import redis
from clickhouse_connect.driver.client import Client
from services.streams import Redis, running_redis

from sensors.redis_stream import redis_stream_sensor
from telemetry_pipeline.assets.jobs import SOURCE_TAG
from telemetry_pipeline.config import load_config
from telemetry_pipeline.errors import PolicyError, TelemetryError
from telemetry_pipeline.ingest.run import build_source, ingest
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.redis_stream import RedisStreamSource

pytestmark = pytest.mark.needs("redis-server")

SOURCE = "platform_events"
POLICY = f"""\
sources:
  {SOURCE}:
    kind: redis_stream
    url: env:PLATFORM_REDIS_URL
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def streams(
    server: Redis, project: Project, client: Client, monkeypatch: pytest.MonkeyPatch
) -> Iterator[redis.Redis]:
    """An empty server that the project reads and nothing else."""
    project.config_file.write_text(POLICY)
    monkeypatch.setenv("PLATFORM_REDIS_URL", server.url)
    with closing(redis.Redis(port=server.port)) as streams:
        streams.flushall()
        yield streams


def tick(instance: dg.DagsterInstance) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance) as context:
        result = redis_stream_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def add_batch(streams: redis.Redis, organisation: str = "acme") -> None:
    streams.xadd(f"product-telemetry:{organisation}:events", {"batch": '{"events": []}'})


def test_no_stream_starts_nothing(streams: redis.Redis, instance: dg.DagsterInstance) -> None:
    result = tick(instance)

    assert not result.run_requests
    assert "nothing new" in str(result.skip_reason)


def test_a_project_without_redis_asks_no_server(
    project: Project, client: Client, instance: dg.DagsterInstance
) -> None:
    assert "no source of kind redis_stream" in str(tick(instance).skip_reason)


def test_new_entries_start_one_run_for_their_source(
    streams: redis.Redis, instance: dg.DagsterInstance
) -> None:
    add_batch(streams)
    add_batch(streams, "other")

    (request,) = tick(instance).run_requests or []
    assert request.tags[SOURCE_TAG] == SOURCE
    assert request.tags["telemetry/waiting"] == "2 entries"
    assert request.run_config["ops"]["ingest"]["config"] == {"source": SOURCE}
    assert request.run_key is None


def test_what_was_ingested_starts_nothing_again(
    project: Project, streams: redis.Redis, instance: dg.DagsterInstance
) -> None:
    add_batch(streams)
    ingest(project, SOURCE, "test")

    assert not tick(instance).run_requests
    (group,) = streams.xinfo_groups("product-telemetry:acme:events")
    assert (group["lag"], group["pending"]) == (0, 0)


def test_an_idle_tick_over_a_handful_of_streams_takes_less_than_a_tenth_of_a_second(
    project: Project, streams: redis.Redis, instance: dg.DagsterInstance
) -> None:
    for number in range(5):
        add_batch(streams, f"org{number}")
    ingest(project, SOURCE, "test")
    tick(instance)

    times = []
    for _ in range(5):
        began = time.perf_counter()
        assert not tick(instance).run_requests
        times.append(time.perf_counter() - began)
    print(f"idle tick over 5 streams: {sorted(times)[2] * 1000:.0f} ms")
    assert min(times) < 0.1


def test_a_server_that_is_down_is_said_in_one_line(
    streams: redis.Redis, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLATFORM_REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")

    with pytest.raises(TelemetryError) as caught:
        tick(instance)
    assert str(caught.value).startswith(f"source {SOURCE}: Redis at 127.0.0.1:1/0: ")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (None, "env:PLATFORM_REDIS_URL is not there or empty; it must hold a redis:// address"),
        ("", "env:PLATFORM_REDIS_URL is not there or empty; it must hold a redis:// address"),
        ("s3cret@h", "env:PLATFORM_REDIS_URL must hold a redis://, rediss:// or unix:// address"),
        (
            "redis://h:s3cret/0",
            "env:PLATFORM_REDIS_URL must hold a redis://, rediss:// or unix:// address",
        ),
    ],
)
def test_an_address_that_is_missing_or_none_is_a_mistake_of_the_policy(
    project: Project, monkeypatch: pytest.MonkeyPatch, url: str | None, problem: str
) -> None:
    project.config_file.write_text(POLICY)
    monkeypatch.delenv("PLATFORM_REDIS_URL", raising=False)
    if url is not None:
        monkeypatch.setenv("PLATFORM_REDIS_URL", url)

    with pytest.raises(PolicyError) as caught:
        build_source(project, load_config(project.config_file), SOURCE)
    assert str(caught.value) == f"telemetry.yaml: sources.{SOURCE}.url: {problem}"


@pytest.mark.parametrize(
    ("setting", "hashes"), [("", True), ("    identity: edge\n", False)], ids=["default", "edge"]
)
def test_ids_are_hashed_on_read_unless_the_policy_says_that_they_were_before(
    project: Project, monkeypatch: pytest.MonkeyPatch, setting: str, hashes: bool
) -> None:
    project.config_file.write_text(POLICY + setting)
    monkeypatch.setenv("PLATFORM_REDIS_URL", "redis://127.0.0.1:1/0")
    with closing(build_source(project, load_config(project.config_file), SOURCE)) as source:
        assert isinstance(source, RedisStreamSource)
        assert source.encoding == "product_telemetry_batch"
        assert source.hashes_on_read == hashes


def test_an_address_can_stand_in_a_file(project: Project, server: Redis, tmp_path: Path) -> None:
    (project.root / "redis.url").write_text(server.url + "\n")
    project.config_file.write_text(POLICY.replace("env:PLATFORM_REDIS_URL", "file:redis.url"))
    with closing(redis.Redis(port=server.port)) as streams:
        streams.flushall()
        streams.xadd("product-telemetry:acme:events", {"batch": json.dumps({})})
    with closing(build_source(project, load_config(project.config_file), SOURCE)) as source:
        assert source.waiting({}) == 1
