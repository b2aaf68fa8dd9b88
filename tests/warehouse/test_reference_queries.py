"""Seven product questions run unchanged over ingested events; Python counts the same answers."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from fresh import empty_warehouse, make_project
from log_records import DAY_MS, common, edge, line, record

from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.warehouse.client import Address, connect
from telemetry_pipeline.warehouse.migrate import migrate

COLUMNS = [
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
]
NOW_MS = int(time.time() * 1000)
ROUTES = ["/projects", "/projects/:projectId/features", "/admin/*", None]
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Happened:
    """An event of the tests, in plain values."""

    name: str
    time_ms: int
    user: int | None
    session: int | None
    route: str | None
    payload: dict[str, Any]

    @property
    def day(self) -> str:
        return datetime.fromtimestamp(self.time_ms / 1000, UTC).date().isoformat()


KEYS = {
    "feature": "ui.feature",
    "surface": "ui.surface",
    "view": "ui.view",
    "filterKey": "ui.filter.key",
    "valueCount": "ui.filter.value_count",
    "chart": "ui.chart",
    "action": "ui.action",
    "boundary": "error.boundary",
    "errorClass": "error.type",
    "durationMs": "session.duration_ms",
    "pagesViewed": "session.pages_viewed",
    "interactions": "session.interactions",
}


def _invent(rng: random.Random) -> Happened:
    name = rng.choice(list(_PAYLOADS))
    # Up to 40 days back, but never within an hour of the 30 days that the queries ask for.
    back = rng.choice([rng.uniform(0.05, 29.9), rng.uniform(30.1, 40)])
    user = rng.choice([*range(40), None])
    return Happened(
        name=name,
        time_ms=NOW_MS - int(back * DAY_MS),
        user=user,
        session=None if user is None else user * 10 + rng.randrange(3),
        route=rng.choice(ROUTES),
        payload=_PAYLOADS[name](rng),
    )


_PAYLOADS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "page_viewed": lambda _: {},
    "feature_viewed": lambda rng: {
        "feature": rng.choice(["feature_list", "segments"]),
        "surface": rng.choice(["page", "modal"]),
    },
    "filter_changed": lambda rng: {
        "view": rng.choice(["audit_log", "flags"]),
        "filterKey": rng.choice(["environment", "tag"]),
        "valueCount": rng.randrange(12),
    },
    "chart_interacted": lambda rng: {
        "chart": rng.choice(["flag_usage", "errors"]),
        "action": rng.choice(["hover", "zoom"]),
        "surface": "dashboard",
    },
    "client_error": lambda rng: {
        "boundary": rng.choice(["feature_table", "sidebar"]),
        "errorClass": rng.choice(["TypeError", "RangeError"]),
    },
    "session_ended": lambda rng: {
        "durationMs": rng.randrange(1000, 3_600_000),
        "pagesViewed": rng.randrange(1, 40),
        "interactions": rng.randrange(100),
    },
}


def _as_record(happened: Happened) -> dict[str, Any]:
    attributes = common(
        enduser__pseudo__id=None if happened.user is None else edge("user", happened.user),
        session__id=None if happened.session is None else edge("session", happened.session),
        url__template=happened.route,
    )
    attributes |= {KEYS[key]: value for key, value in happened.payload.items()}
    return record(happened.name, attributes, happened.time_ms)


@dataclass(frozen=True)
class Answers:
    """The rows of each query by its title, and the events of the last 30 days they are about."""

    rows: dict[str, list[Row]]
    events: list[Happened]
    client: Client

    def of(self, name: str) -> list[Happened]:
        return [event for event in self.events if event.name == name]


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, warehouse_address: Address
) -> Iterator[Answers]:
    rng = random.Random(11)
    happened = [_invent(rng) for _ in range(2500)]
    records = [_as_record(event) for event in happened]
    noise = [
        record("page_viewed", common(consent__analytics="denied"), NOW_MS - DAY_MS),
        record("never_heard_of", common(), NOW_MS - DAY_MS),
    ]
    sent = [*records, *rng.sample(records, 200), *noise]
    with pytest.MonkeyPatch.context() as patch:
        project = make_project(tmp_path_factory.mktemp("project"), warehouse_address, patch)
        sink = project.sink_dir / "events.jsonl"
        sink.write_bytes(
            b"".join(line(*sent[start : start + 50]) for start in range(0, len(sent), 50))
        )
        with closing(connect(project)) as client:
            empty_warehouse(client)
            migrate(client)
            report = ingest(project, "app_events", "test")
        assert (report.accepted, report.duplicates) == (2500, 200)
        with closing(connect(project, database="raw")) as client:
            rows = {
                title: [tuple(row) for row in client.query(statement).result_rows]
                for title, statement in _queries()
            }
            recent = [event for event in happened if event.time_ms > NOW_MS - 30 * DAY_MS]
            yield Answers(rows, recent, client)


def _queries() -> list[tuple[str, str]]:
    text = Path(__file__).with_name("reference_queries.sql").read_text()
    parts = [part.strip() for part in text.split(";\n") if part.strip()]
    titled = []
    for part in parts:
        comments = [row[3:] for row in part.splitlines() if row.startswith("-- ")]
        titled.append((comments[-1], part))
    assert len(titled) == 7
    return titled


def _groups(events: list[Happened], key: Callable[[Happened], Row]) -> dict[Row, list[Happened]]:
    groups: dict[Row, list[Happened]] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return groups


def _users(events: list[Happened]) -> int:
    return len({event.user for event in events if event.user is not None})


def _sessions(events: list[Happened]) -> int:
    return len({event.session for event in events if event.session is not None})


def _mean(values: list[int]) -> float:
    return sum(values) / len(values)


def _is_falling(rows: list[Row], column: int) -> bool:
    figures = [row[column] for row in rows]
    return figures == sorted(figures, reverse=True)


def test_the_view_has_the_designs_columns_first(answers: Answers) -> None:
    described = answers.client.query("DESCRIBE TABLE raw.product_telemetry_events").result_rows

    assert [row[0] for row in described][: len(COLUMNS)] == COLUMNS


def test_daily_active_users(answers: Answers) -> None:
    rows = answers.rows["Daily active anonymous users"]
    days = _groups(answers.events, lambda event: (event.day,))

    assert [(row[0].isoformat(), row[1]) for row in rows] == [
        (day, _users(events)) for (day,), events in sorted(days.items())
    ]


def test_top_route_patterns(answers: Answers) -> None:
    rows = answers.rows["Top route patterns"]
    routes = _groups(answers.of("page_viewed"), lambda event: (event.route,))

    assert Counter(rows) == Counter(
        (route, len(events), _sessions(events), _users(events))
        for (route,), events in routes.items()
    )
    assert _is_falling(rows, 1)
    assert None in {row[0] for row in rows}, "an absent route is NULL, not ''"


def test_feature_usage(answers: Answers) -> None:
    rows = answers.rows["Feature usage"]
    features = _groups(
        answers.of("feature_viewed"),
        lambda event: (event.payload["feature"], event.payload["surface"]),
    )

    assert Counter(rows) == Counter(
        (*key, len(events), _users(events)) for key, events in features.items()
    )
    assert _is_falling(rows, 2)


def test_filter_changes(answers: Answers) -> None:
    rows = answers.rows["Filter changes"]
    filters = _groups(
        answers.of("filter_changed"),
        lambda event: (event.payload["view"], event.payload["filterKey"]),
    )

    assert {row[:3] for row in rows} == {(*key, len(events)) for key, events in filters.items()}
    for view, filter_key, _, average in rows:
        counts = [event.payload["valueCount"] for event in filters[view, filter_key]]
        assert average == pytest.approx(_mean(counts))


def test_chart_interactions(answers: Answers) -> None:
    rows = answers.rows["Chart interactions"]
    charts = _groups(
        answers.of("chart_interacted"),
        lambda event: tuple(event.payload[key] for key in ("chart", "action", "surface")),
    )

    assert Counter(rows) == Counter(
        (*key, len(events), _sessions(events)) for key, events in charts.items()
    )


def test_client_errors(answers: Answers) -> None:
    rows = answers.rows["Client errors"]
    errors = _groups(
        answers.of("client_error"),
        lambda event: (event.route, event.payload["boundary"], event.payload["errorClass"]),
    )

    assert Counter(rows) == Counter(
        (*key, len(events), _users(events)) for key, events in errors.items()
    )


def test_session_durations(answers: Answers) -> None:
    ((quantiles, pages, interactions),) = answers.rows["Session duration distribution"]
    payloads = [event.payload for event in answers.of("session_ended")]
    durations = sorted(payload["durationMs"] for payload in payloads)

    assert list(quantiles) == pytest.approx(
        [_quantile(durations, share) for share in (0.5, 0.75, 0.9, 0.95)]
    )
    assert pages == pytest.approx(_mean([payload["pagesViewed"] for payload in payloads]))
    assert interactions == pytest.approx(_mean([payload["interactions"] for payload in payloads]))


def _quantile(ordered: list[int], share: float) -> float:
    """Between the two neighbours, in proportion."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
