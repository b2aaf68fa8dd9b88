"""Event histories for the tests of the marts: an event, a random history, and loading one."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from uuid import UUID

import yaml
from clickhouse_connect.driver.client import Client

REPOSITORY = Path(__file__).resolve().parents[2]

EMPTIED = (
    "raw.product_telemetry_events_storage",
    "raw.dead_letters",
    "ops.touches",
    "ops.catalog_events",
    "ops.reporting_config_versions",
    "ops.slice_results",
)


@dataclass(frozen=True)
class Event:
    """One accepted event. None stands for an id that was not given; `at` is in UTC."""

    event_id: UUID
    name: str
    at: datetime
    org: int | None = None
    user: int | None = None
    session: int | None = None
    route: str | None = None
    payload: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Feature:
    """A feature of telemetry.yaml: its adopting events and the payload key of its flag, or ''."""

    name: str
    adopted_by: tuple[str, ...]
    flag_key: str


# Two features behind flags and one that everybody has.
FEATURES = (
    Feature(
        "change_requests",
        ("change_request.created", "change_request.committed"),
        "flagChangeRequests",
    ),
    Feature("scheduled_changes", ("scheduled_change.created",), "flagScheduledChanges"),
    Feature("filters", ("filter_changed",), ""),
)


def event_classes() -> dict[str, str]:
    """The class of every event in catalog/."""
    files = (REPOSITORY / "catalog" / "events").glob("*.yaml")
    events = [event for file in files for event in yaml.safe_load(file.read_text())["events"]]
    return {event["name"]: event["annotations"]["class"] for event in events}


def random_history(
    seed: int, *, last_day: date, days: int = 75, events: int = 4_000
) -> list[Event]:
    """Events of 40 users in 6 organisations over `days` days, with the awkward ones on purpose:
    exact midnights, users of two organisations, and events without user, organisation or session.
    """
    chance = random.Random(seed)
    first_day = last_day - timedelta(days=days - 1)
    names = list(event_classes())
    homes = {user: chance.sample(range(101, 107), k=2) for user in range(1, 41)}
    arrivals = {user: chance.randrange(days) for user in homes}
    history = []
    for _ in range(events):
        user = chance.choice(list(homes))
        org = chance.choices(homes[user], weights=(5, 1))[0]
        # Early days are likelier: some users stop coming, so retention falls.
        span = days - arrivals[user]
        day = first_day + timedelta(days=arrivals[user] + int(span * chance.random() ** 2))
        history.append(
            Event(
                event_id=UUID(int=chance.getrandbits(128)),
                name=chance.choice(names),
                at=datetime.combine(day, _time_of_day(chance), UTC),
                org=None if chance.random() < 0.03 else org,
                user=None if chance.random() < 0.03 else user,
                session=None if chance.random() < 0.3 else chance.randrange(1, 400),
                route=chance.choice(["/projects", "/projects/:projectId", None]),
                payload=_payload(chance, org),
            )
        )
    return history


def load(client: Client, history: list[Event], features: tuple[Feature, ...] = FEATURES) -> None:
    """Make the warehouse hold exactly this history, the catalogue and these features."""
    for table in EMPTIED:
        client.command(f"TRUNCATE TABLE {table}")
    version = datetime(2026, 1, 1, tzinfo=UTC)
    client.insert(
        "ops.catalog_events",
        [[name, event_class, "tests", version] for name, event_class in event_classes().items()],
        column_names=["name", "class", "owner", "updated_at"],
    )
    client.insert(
        "ops.reporting_config_versions",
        [
            [version, "feature", feature.name, position, event_name, feature.flag_key]
            for feature in features
            for position, event_name in enumerate(feature.adopted_by)
        ],
        column_names=["version", "section", "item", "position", "event_name", "flag_key"],
    )
    land(client, history, batch_id=1)


def land(client: Client, events: list[Event], *, batch_id: int, touch: bool = True) -> None:
    """Add events as one batch; `touch=False` leaves out what says that their days changed."""
    if not events:
        return
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    rows = [
        [
            event.org or 0,
            event.event_id,
            event.name,
            "2026-05-telemetry-v1",
            event.session or 0,
            event.user or 0,
            event.route or "",
            json.dumps(event.payload),
            event.at,
            event.at,
            "tests",
            batch_id,
            1,
            "tests",
            position,
            "k1",
            epoch,
            1,
        ]
        for position, event in enumerate(events)
    ]
    client.insert(
        "raw.product_telemetry_events_storage",
        rows,
        column_names=[
            "org_id_hash",
            "event_id",
            "name",
            "schema_version",
            "session_id",
            "anonymous_user_id",
            "route_pattern",
            "payload_json",
            "occurred_at",
            "ingested_at",
            "source",
            "batch_id",
            "attempt",
            "source_partition",
            "source_position",
            "pseudonym_key_id",
            "claimed_occurred_at",
            "precedence",
        ],
    )
    if touch:
        client.insert(
            "ops.touches",
            [[day, batch_id, 1, "landed", epoch] for day in {event.at.date() for event in events}],
            column_names=["day", "batch_id", "attempt", "kind", "touched_at"],
        )


def _time_of_day(chance: random.Random) -> time:
    if chance.random() < 0.05:
        return chance.choice([time(0, 0), time(23, 59, 59, 999_000)])
    return time(chance.randrange(24), chance.randrange(60), chance.randrange(60))


def _payload(chance: random.Random, org: int) -> dict[str, object]:
    """Every payload key of the catalogue; a model reads only its event's own."""
    payload: dict[str, object] = {
        "feature": chance.choice(["feature_list", "audit_log"]),
        "surface": chance.choice(["page", "modal", "sidebar", "dashboard"]),
        "view": chance.choice(["audit_log", "project"]),
        "filterKey": chance.choice(["environment", "state"]),
        "valueCount": chance.randrange(5),
        "chart": "flag_usage",
        "action": chance.choice(["hover", "zoom"]),
        "boundary": "feature_table",
        "errorClass": chance.choice(["TypeError", "RangeError"]),
        "durationMs": chance.randrange(900_000),
        "pagesViewed": chance.randrange(20),
        "interactions": chance.randrange(40),
        "environmentKind": chance.choice(["production", "staging", "development"]),
        "approvals": chance.randrange(3),
        "delayHours": 12.5,
        "trialDays": 14,
        "subscriptionPlan": "startup",
    }
    if chance.random() < 0.3:
        payload["flagChangeRequests"] = org < 104 and chance.random() < 0.5
        payload["flagScheduledChanges"] = org == 105
    return payload
