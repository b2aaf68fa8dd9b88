"""A Kafka source of telemetry.yaml as librdkafka wants it: references followed, values as text."""

from __future__ import annotations

from telemetry_pipeline.config import KafkaSource, is_reference, resolve
from telemetry_pipeline.errors import PolicyError
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.kafka_client import Connection


def read_connection(project: Project, name: str, source: KafkaSource) -> Connection:
    """Raises PolicyError that names the reference when there is nothing behind it."""
    place = f"sources.{name}"
    brokers = source.brokers
    if isinstance(brokers, str):
        brokers = _follow(project, f"{place}.brokers", brokers).split(",")
    named = [broker.strip() for broker in brokers if broker.strip()]
    if not named:
        raise PolicyError(project.config_file, None, f"{place}.brokers", "names no broker")
    settings = {
        setting: _text(project, f"{place}.settings.{setting}", setting, value)
        for setting, value in source.settings.items()
    }
    return Connection(",".join(named), settings)


def _text(project: Project, place: str, setting: str, value: str | int | bool) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case _ if is_reference(value):
            return _follow(project, place, value)
        case _ if setting.endswith(".location") and value != "probe":
            return str(project.resolve(value))
        case _:
            return value


def _follow(project: Project, place: str, reference: str) -> str:
    value = resolve(reference, project.root)
    if not value:
        raise PolicyError(project.config_file, None, place, f"{reference} is not set or empty")
    return value
