"""telemetry.yaml: its model and how it is loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.yaml_document import YamlDocument, load_yaml

_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+")


def is_reference(value: str) -> bool:
    """Whether a value of telemetry.yaml names where the value is: env:NAME or file:PATH."""
    return _REFERENCE.fullmatch(value) is not None


def _check_reference(value: str) -> str:
    if not is_reference(value):
        raise ValueError("must be a reference, env:NAME or file:PATH, never the value itself")
    return value


def _check_timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: Europe is a folder
        raise ValueError("is not an IANA time zone such as Europe/Berlin") from None
    return value


SecretReference = Annotated[str, AfterValidator(_check_reference)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


#: Settings of librdkafka that hold a secret, by the end of their name.
_SECRET_SETTING = re.compile(r".*(password|passphrase|secret|\.key\.pem)|sasl\.oauthbearer\.config")
#: Settings that others here decide, and what breaks or where it stands.
_OUR_SETTINGS = {
    "bootstrap.servers": "write brokers instead",
    "metadata.broker.list": "write brokers instead",
    "group.id": "write group instead",
    **dict.fromkeys(
        (
            "enable.auto.commit",
            "auto.commit.enable",
            "enable.auto.offset.store",
            "offset.store.method",
            "auto.offset.reset",
            "isolation.level",
            "enable.partition.eof",
        ),
        "exactly once rests on it; remove it",
    ),
}


def _check_brokers(value: list[str] | str) -> list[str] | str:
    if isinstance(value, str):
        return _check_reference(value)
    if not value or not all(re.fullmatch(r"[^\s,/]+:[0-9]+", broker) for broker in value):
        raise ValueError("must be a list of host:port, or a reference such as env:KAFKA_BROKERS")
    return value


def _check_kafka_settings(value: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    for name, setting in value.items():
        if name in _OUR_SETTINGS:
            raise ValueError(f"{name} is not yours to set: {_OUR_SETTINGS[name]}")
        is_secret = _SECRET_SETTING.fullmatch(name) is not None
        if is_secret and not (isinstance(setting, str) and is_reference(setting)):
            raise ValueError(
                f"{name} must be a reference, env:NAME or file:PATH, never the value itself"
            )
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


#: edge: ids were hashed before they arrived, anything else is rejected. hash_on_read: ids arrive
#: as they are and are hashed with the edge key before anything is written.
Identity = Literal["edge", "hash_on_read"]


class OtelFileSource(_Model):
    """The Collector's file exporter: an active file of OTLP/JSON lines, rotated ones beside it."""

    kind: Literal["otel_file"]
    path: str = Field(min_length=1, description="the active file, relative to the project")
    identity: Identity = "edge"
    #: What a .gz or .zst file may decompress to: bytes, and times its own size (from 64 MiB on).
    max_decompressed_bytes: int = Field(default=4 * 1024**3, ge=1024**2)
    max_compression_ratio: int = Field(default=200, ge=1)


class KafkaSource(_Model):
    """One topic that a Collector's Kafka exporter writes: one export request a message."""

    kind: Literal["kafka"]
    brokers: Annotated[list[str] | str, AfterValidator(_check_brokers)] = Field(
        description="host:port, or env:NAME of a list with commas"
    )
    topic: str = Field(min_length=1, max_length=249, pattern=r"^[a-zA-Z0-9._-]+$")
    encoding: Literal["otlp_json", "otlp_proto"] = "otlp_proto"
    group: str = Field(
        default="telemetry-pipeline", min_length=1, description="where lag tools see offsets"
    )
    #: librdkafka's own settings (security.protocol, sasl.*, ssl.*); secrets only by reference.
    settings: Annotated[dict[str, str | int | bool], AfterValidator(_check_kafka_settings)] = Field(
        default_factory=dict
    )
    identity: Identity = "edge"


class RedisStreamSource(_Model):
    """Streams `<prefix>:<organisation or anonymous>:events` of ProductTelemetryBatch entries."""

    kind: Literal["redis_stream"]
    url: SecretReference = Field(description="env:NAME or file:PATH of a redis:// address")
    prefix: str = Field(
        default="product-telemetry",
        pattern=r"^[a-zA-Z0-9._-]+$",
        description="what the streams' names begin with; no colon",
    )
    group: str = Field(
        default="telemetry-pipeline", min_length=1, description="the consumer group of its own"
    )
    identity: Identity = "hash_on_read"


SourceSettings = Annotated[
    OtelFileSource | KafkaSource | RedisStreamSource, Field(discriminator="kind")
]


class Consent(_Model):
    absent: Literal["drop", "accept"] = "drop"


class Retention(_Model):
    raw_days: int = Field(default=180, ge=2, le=3650)
    dead_letter_days: int = Field(default=14, ge=1, le=365)


class Feature(_Model):
    """A product feature: the events that adopt it and the payload flag that enables it."""

    adopted_by: list[str] = Field(min_length=1)
    enabled_flag: str | None = None


class Reporting(_Model):
    timezone: Annotated[str, AfterValidator(_check_timezone)] = "UTC"
    features: dict[Name, Feature] = Field(default_factory=dict)


class Route(_Model):
    """Event name globs and the destinations that get them."""

    events: list[str] = Field(min_length=1)
    to: list[Name] = Field(min_length=1)


class AmplitudeDestination(_Model):
    """Amplitude's HTTP V2 API. Off unless `enabled`; an empty allowlist exports nothing."""

    kind: Literal["amplitude"]
    enabled: bool | SecretReference = False
    endpoint: str = "https://api2.amplitude.com/2/httpapi"
    api_key: SecretReference
    events_per_second: int | None = Field(default=1000, ge=1)


class Config(_Model):
    """The whole of telemetry.yaml."""

    sources: dict[Name, SourceSettings] = Field(min_length=1)
    consent: Consent = Consent()
    retention: Retention = Retention()
    reporting: Reporting = Reporting()
    routing: list[Route] = Field(default_factory=list)
    destinations: dict[Name, AmplitudeDestination] = Field(default_factory=dict)

    def place_of(self, source: str, root: Path) -> str:
        """Where a source reads, as a person would name it."""
        match self.sources[source]:
            case OtelFileSource(path=path):
                return str(root / path)
            case KafkaSource(topic=topic):
                return f"Kafka topic {topic}"
            case RedisStreamSource(prefix=prefix):
                return f"Redis streams {prefix}:*:events"

    def allowlist(self, destination: str) -> tuple[str, ...]:
        """The event name globs routed to `destination`; empty means nothing goes there."""
        globs = [glob for route in self.routing if destination in route.to for glob in route.events]
        return tuple(dict.fromkeys(globs))


def load_config(file: Path) -> Config:
    """Read and check telemetry.yaml. Raises PolicyError with file, line, field and the fix."""
    document = load_yaml(file)
    if not isinstance(document.data, dict):
        raise document.error((), "must be a mapping with sources, consent, routing, …")
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        raise _first_problem(document, error) from None
    for index, route in enumerate(config.routing):
        for name in route.to:
            if name not in config.destinations:
                known = ", ".join(config.destinations) or "none"
                raise document.error(
                    ("routing", index, "to"), f"no destination named {name} (there are: {known})"
                )
    return config


def _first_problem(document: YamlDocument, error: ValidationError) -> Exception:
    # Every problem counts, but one clear line helps more than a list of consequences.
    problem = error.errors(include_url=False, include_input=False)[0]
    path = _path_in(document.data, problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "is not a setting; check its spelling or remove it"
    if problem["type"] == "missing":
        message = "is missing"
    if problem["type"] == "union_tag_invalid":
        path.append("kind")
        message = f"must be one of {problem['ctx']['expected_tags']}"
    return document.error(path, message)


def _path_in(value: Any, loc: tuple[str | int, ...]) -> list[str | int]:
    """Where in the document a problem is: pydantic puts names of union branches in between, and
    its last part may be a setting that is missing."""
    path: list[str | int] = []
    for number, part in enumerate(loc):
        found = isinstance(value, dict) and part in value
        if found or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
        elif number < len(loc) - 1 or not isinstance(value, dict) or part == "[key]":
            continue
        path.append(part)
    return path


def resolve(reference: str, root: Path) -> str | None:
    """The value behind env:NAME or file:PATH; None when the variable or file is not there."""
    kind, _, target = reference.partition(":")
    if kind == "env":
        return os.environ.get(target)
    path = root / target
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TelemetryError(f"{target}: cannot be read: {error.strerror}") from None


def is_enabled(value: bool | str, root: Path) -> bool:
    """Whether a destination's `enabled` holds: true, or a reference to 1, true, yes or on."""
    if isinstance(value, bool):
        return value
    return (resolve(value, root) or "").lower() in ("1", "true", "yes", "on")


def resolve_endpoint(value: str, root: Path, default: str) -> str:
    """An endpoint given as an address or as env:NAME; the default when that is unset."""
    if _REFERENCE.fullmatch(value):
        return resolve(value, root) or default
    return value


def as_policy(config: Config) -> dict[str, Any]:
    """What of the config changes the outcome of ingest, for the contract's hash."""
    return {
        "consent": config.consent.model_dump(),
        "retention": config.retention.model_dump(),
        "timezone": config.reporting.timezone,
    }
