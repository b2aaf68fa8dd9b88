"""Writes what dbt must know of the policy into the warehouse: features, event classes.

They are rows, not dbt variables: a change of telemetry.yaml reaches the next build without a new
manifest.
"""

from __future__ import annotations

from datetime import UTC, datetime

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.catalog.model import Catalog
from telemetry_pipeline.config import Config
from telemetry_pipeline.errors import PolicyError
from telemetry_pipeline.paths import Project

ReportingRow = tuple[str, str, int, str, str]

#: A version needs a row: this one says that the policy names nothing any more.
_NOTHING: ReportingRow = ("none", "", 0, "", "")


def reporting_rows(config: Config) -> list[ReportingRow]:
    """(section, item, position, event_name, flag_key), one row an adopting event."""
    return [
        ("feature", name, position, event, feature.enabled_flag or "")
        for name, feature in config.reporting.features.items()
        for position, event in enumerate(feature.adopted_by, start=1)
    ]


def check_reporting(project: Project, config: Config, catalog: Catalog) -> None:
    """Raise PolicyError when a feature names an event that is not in the catalogue."""
    for name, feature in config.reporting.features.items():
        for event in feature.adopted_by:
            if catalog.event(event) is None:
                raise PolicyError(
                    project.config_file,
                    None,
                    f"reporting.features.{name}.adopted_by",
                    f"{event} is not an event of the catalogue",
                )


def publish_policy(client: Client, config: Config, catalog: Catalog) -> bool:
    """Bring both tables up to date; returns whether anything changed."""
    changed = _publish_reporting(client, reporting_rows(config))
    return _publish_events(client, catalog) or changed


def _publish_reporting(client: Client, wanted: list[ReportingRow]) -> bool:
    stored = client.query(
        "SELECT section, item, position, event_name, flag_key FROM ops.reporting_config"
    ).result_rows
    if stored and not wanted:
        wanted = [_NOTHING]
    if sorted(tuple(row) for row in stored) == sorted(wanted):
        return False
    version = client.command("SELECT toString(now64(6, 'UTC'))")
    # One insert, one block: a reader sees the old features or the new ones, never a mix.
    client.insert(
        "ops.reporting_config_versions",
        [[_as_time(str(version)), *row] for row in wanted],
        column_names=["version", "section", "item", "position", "event_name", "flag_key"],
    )
    return True


def _publish_events(client: Client, catalog: Catalog) -> bool:
    stored = client.query("SELECT name, class, owner FROM ops.catalog_events FINAL").result_rows
    wanted = sorted((event.name, event.event_class, event.owner) for event in catalog.events)
    known = {tuple(row) for row in stored}
    fresh = [row for row in wanted if row not in known]
    if not fresh:
        return False
    version = _as_time(str(client.command("SELECT toString(now64(6, 'UTC'))")))
    client.insert(
        "ops.catalog_events",
        [[*row, version] for row in fresh],
        column_names=["name", "class", "owner", "updated_at"],
    )
    return True


def _as_time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
