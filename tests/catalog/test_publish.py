"""What telemetry.yaml and catalog/ say reaches the warehouse as rows, and leaves it again."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client
from fresh import REPOSITORY

from telemetry_pipeline.catalog.publish import publish_policy
from telemetry_pipeline.catalog.reader import read_catalog
from telemetry_pipeline.config import Config, Feature, load_config

CATALOG = read_catalog(REPOSITORY / "catalog")
POLICY = load_config(REPOSITORY / "telemetry.yaml")


def with_features(**features: Feature) -> Config:
    return POLICY.model_copy(
        update={"reporting": POLICY.reporting.model_copy(update={"features": features})}
    )


def features(client: Client) -> list[tuple[object, ...]]:
    rows = client.query(
        "SELECT item, event_name, flag_key FROM ops.reporting_config "
        "WHERE section = 'feature' ORDER BY item, position"
    )
    return [tuple(row) for row in rows.result_rows]


def test_features_follow_the_policy_and_are_written_only_when_it_changed(client: Client) -> None:
    assert publish_policy(client, POLICY, CATALOG)
    assert features(client) == [
        ("change_requests", "change_request.created", "flagChangeRequests"),
        ("change_requests", "change_request.committed", "flagChangeRequests"),
        ("scheduled_changes", "scheduled_change.created", "flagScheduledChanges"),
    ]
    assert not publish_policy(client, POLICY, CATALOG)

    fewer = with_features(trials=Feature(adopted_by=["trial_started"]))
    assert publish_policy(client, fewer, CATALOG)
    assert features(client) == [("trials", "trial_started", "")]

    none = with_features()
    assert publish_policy(client, none, CATALOG)
    assert features(client) == []
    assert not publish_policy(client, none, CATALOG)

    assert publish_policy(client, POLICY, CATALOG)
    assert len(features(client)) == 3


def test_a_policy_without_features_writes_nothing_into_a_fresh_warehouse(client: Client) -> None:
    publish_policy(client, with_features(), CATALOG)

    assert client.command("SELECT count() FROM ops.reporting_config_versions") == 0


def test_the_classes_of_events_follow_the_catalogue(client: Client) -> None:
    publish_policy(client, POLICY, CATALOG)

    rows = client.query("SELECT name, class, owner FROM ops.catalog_events FINAL").result_rows
    assert sorted(tuple(row) for row in rows) == sorted(
        (event.name, event.event_class, event.owner) for event in CATALOG.events
    )
