"""Puts a loader together from the project's policy and keys, and runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from telemetry_pipeline.catalog.publish import check_reporting, publish_policy
from telemetry_pipeline.catalog.reader import read_catalog
from telemetry_pipeline.config import Config, load_config, resolve
from telemetry_pipeline.config import KafkaSource as KafkaSettings
from telemetry_pipeline.config import OtelFileSource as OtelFileSettings
from telemetry_pipeline.config import RedisStreamSource as RedisStreamSettings
from telemetry_pipeline.errors import PolicyError
from telemetry_pipeline.identity.keys import read_key
from telemetry_pipeline.ingest import ledger
from telemetry_pipeline.ingest.loader import IngestReport, Loader, LoaderKeys, new_session_id
from telemetry_pipeline.ingest.statements import compile_contract
from telemetry_pipeline.paths import Project
from telemetry_pipeline.sources.base import Source
from telemetry_pipeline.sources.compressed_files import Limits
from telemetry_pipeline.sources.dead_letters import DEAD_LETTERS, DeadLetterSource, PayloadKey
from telemetry_pipeline.sources.kafka import KafkaSource
from telemetry_pipeline.sources.kafka_settings import read_connection
from telemetry_pipeline.sources.otel_file import OtelFileSource
from telemetry_pipeline.sources.redis_stream import RedisStreamSource
from telemetry_pipeline.warehouse.client import connect, find_spool
from telemetry_pipeline.warehouse.retention import apply_retention

#: A run hands back to the sensor after this much, so that marts follow during a backlog.
MAX_RUN_BYTES = 4 * 1024**3


def build_source(project: Project, config: Config, name: str) -> Source:
    """The source `name` of telemetry.yaml, or the one of replayed dead letters."""
    if DEAD_LETTERS in config.sources:
        raise PolicyError(
            project.config_file,
            None,
            f"sources.{DEAD_LETTERS}",
            "is the name under which dead letters are replayed; choose another",
        )
    if name == DEAD_LETTERS:
        return _replays(project)
    settings = config.sources.get(name)
    if settings is None:
        known = ", ".join(config.sources)
        raise PolicyError(project.config_file, None, "sources", f"no source {name} ({known})")
    match settings:
        case OtelFileSettings():
            return OtelFileSource(
                name,
                project.resolve(settings.path),
                hashes_on_read=settings.identity == "hash_on_read",
                limits=Limits(settings.max_decompressed_bytes, settings.max_compression_ratio),
            )
        case KafkaSettings():
            return KafkaSource(
                name,
                read_connection(project, name, settings),
                settings.topic,
                encoding=settings.encoding,
                group=settings.group,
                hashes_on_read=settings.identity == "hash_on_read",
            )
        case RedisStreamSettings():
            return _redis_streams(project, name, settings)


def _redis_streams(project: Project, name: str, settings: RedisStreamSettings) -> RedisStreamSource:
    place = f"sources.{name}.url"
    url = resolve(settings.url, project.root)
    if not url:
        problem = f"{settings.url} is not there or empty; it must hold a redis:// address"
        raise PolicyError(project.config_file, None, place, problem)
    edge = read_key("edge", project.keys_dir)
    try:
        return RedisStreamSource(
            name,
            url,
            prefix=settings.prefix,
            group=settings.group,
            partition_key=bytes.fromhex(edge.derive("redis stream name")),
            hashes_on_read=settings.identity == "hash_on_read",
        )
    except ValueError:  # its text may hold a part of the address, and so of the password
        problem = f"{settings.url} must hold a redis://, rediss:// or unix:// address"
        raise PolicyError(project.config_file, None, place, problem) from None


def payload_key(project: Project) -> PayloadKey:
    """What opens dead letters now. Raises TelemetryError that says how to make a key."""
    key = read_key("dead_letter", project.keys_dir)
    return PayloadKey(key.key_id, key.derive("payload"))


def _replays(project: Project) -> DeadLetterSource:
    return DeadLetterSource(
        connect(project),
        payload_key(project),
        grace_seconds=ledger.INSERT_SECONDS + ledger.CLOCK_MARGIN_SECONDS,
    )


def ingest(
    project: Project,
    source_name: str,
    run_id: str,
    *,
    max_bytes: int = MAX_RUN_BYTES,
    on_slice: Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Land everything the source has, exactly once. Raises TelemetryError with one clear line."""
    config = load_config(project.config_file)
    catalog = read_catalog(project.catalog_dir)
    check_reporting(project, config, catalog)
    source = build_source(project, config, source_name)
    keys = LoaderKeys(
        pseudonym=read_key("pseudonym", project.keys_dir),
        event=read_key("event", project.keys_dir),
        dead_letter=read_key("dead_letter", project.keys_dir),
        edge=read_key("edge", project.keys_dir) if source.hashes_on_read else None,
    )
    with (
        closing(source),
        closing(connect(project, session_id=new_session_id(), log_comment=run_id)) as client,
    ):
        apply_retention(client, config.retention)
        publish_policy(client, config, catalog)
        loader = Loader(
            client=client,
            source=source,
            contract=compile_contract(catalog, config),
            keys=keys,
            run_id=run_id,
            timezone=config.reporting.timezone,
            spool=find_spool(project),
        )
        return loader.run(max_bytes=max_bytes, on_slice=on_slice)
