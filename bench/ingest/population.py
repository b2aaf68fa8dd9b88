"""The benchmark's events as arrays: who does what when. Pure and seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

USERS = 5_000
ORGANISATIONS = 200
EVENTS_A_SESSION = (10, 30)  # uniform: 20 on average
SESSION_MS = 20 * 60 * 1000
WINDOW_MS = 2 * 24 * 3600 * 1000
#: A record reaches its Collector this long after it happened, at most.
DELAY_MS = 5_000

FRONT_END, BACK_END = "web-app", "core-api"

Value = str | int | float | bool


@dataclass(frozen=True)
class Kind:
    """One way an event looks: three attributes beside the five that every event has."""

    name: str
    service: str
    attributes: tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class _Event:
    """`weight`: of 1,000 events. Variant i takes value i (modulo) of each list."""

    name: str
    service: str
    weight: int
    attributes: dict[str, list[Value]]

    def kinds(self, number: int) -> list[Kind]:
        return [
            Kind(
                self.name,
                self.service,
                tuple(
                    (key, values[(index + step * (index // len(values))) % len(values)])
                    for step, (key, values) in enumerate(self.attributes.items())
                ),
            )
            for index in range(number)
        ]


_ROUTES: list[Value] = [
    "/projects",
    "/projects/:projectId/features",
    "/projects/:projectId/features/:featureId",
    "/projects/:projectId/change-requests",
    "/admin/users",
    "/admin/api",
    "/insights",
    "/history",
    "/segments",
    "/integrations",
    "/login/password",
]
_FEATURES: list[Value] = [
    "feature_list",
    "feature_detail",
    "strategy_editor",
    "playground",
    "insights",
    "audit_log",
    "segments",
    "change_requests",
    "api_tokens",
    "environments",
    "health_report",
    "lifecycle",
    "project_settings",
]
_VIEWS: list[Value] = ["audit_log", "feature_list", "insights", "change_requests", "segments"]
_FILTERS: list[Value] = ["environment", "type", "state", "tag", "created_by", "project", "segment"]
_CHARTS: list[Value] = ["flag_usage", "lead_time", "health", "update_rate", "users", "traffic"]
_SURFACES: list[Value] = ["page", "modal", "sidebar", "dashboard"]
_PLANS: list[Value] = ["trial", "free", "startup", "enterprise"]
_ENVIRONMENTS: list[Value] = ["production", "staging", "development"]
_ERRORS: list[Value] = ["TypeError", "RangeError", "NetworkError", "ChunkLoadError", "Conflict"]
_BOUNDARIES: list[Value] = ["feature_table", "app_shell", "chart", "editor", "filters"]
_VERSION: list[Value] = ["2026-05-telemetry-v1"]
_FLAG: list[Value] = [True, False]

#: The catalogue's 14 events. Front ends send most; trials and subscriptions are rare.
_EVENTS = (
    _Event(
        "page_viewed",
        FRONT_END,
        300,
        {
            "url.template": _ROUTES,
            "organisation.plan": _PLANS,
            "feature_flag.change_requests": _FLAG,
        },
    ),
    _Event(
        "feature_viewed",
        FRONT_END,
        330,
        {"url.template": _ROUTES, "ui.feature": _FEATURES, "ui.surface": _SURFACES},
    ),
    _Event(
        "filter_changed",
        FRONT_END,
        120,
        {"ui.view": _VIEWS, "ui.filter.key": _FILTERS, "ui.filter.value_count": [*range(12)]},
    ),
    _Event(
        "chart_interacted",
        FRONT_END,
        80,
        {
            "ui.chart": _CHARTS,
            "ui.action": ["hover", "zoom", "toggle_series", "export"],
            "ui.surface": _SURFACES,
        },
    ),
    _Event(
        "client_error",
        FRONT_END,
        12,
        {"url.template": _ROUTES, "error.boundary": _BOUNDARIES, "error.type": _ERRORS},
    ),
    _Event(
        "session_ended",
        FRONT_END,
        50,
        {
            "session.duration_ms": [*range(4_000, 1_200_000, 7_001)],
            "session.pages_viewed": [*range(1, 14)],
            "session.interactions": [*range(37)],
        },
    ),
    _Event(
        "change_request.created",
        BACK_END,
        30,
        {
            "environment.kind": _ENVIRONMENTS,
            "feature_flag.change_requests": _FLAG,
            "organisation.plan": _PLANS,
        },
    ),
    _Event(
        "change_request.committed",
        BACK_END,
        24,
        {
            "environment.kind": _ENVIRONMENTS,
            "change_request.approvals": [1, 2, 3],
            "organisation.plan": _PLANS,
        },
    ),
    _Event(
        "change_request.failed",
        BACK_END,
        4,
        {
            "environment.kind": _ENVIRONMENTS,
            "change_request.approvals": [0, 1, 2],
            "error.type": _ERRORS,
        },
    ),
    _Event(
        "scheduled_change.created",
        BACK_END,
        25,
        {
            "environment.kind": _ENVIRONMENTS,
            "scheduled_change.delay_hours": [0.5, 1.0, 4.25, 12.5, 24.0, 72.0],
            "organisation.plan": _PLANS,
        },
    ),
    _Event(
        "scheduled_change.committed",
        BACK_END,
        18,
        {
            "environment.kind": _ENVIRONMENTS,
            "feature_flag.scheduled_changes": _FLAG,
            "organisation.plan": _PLANS,
        },
    ),
    _Event(
        "scheduled_change.failed",
        BACK_END,
        3,
        {
            "environment.kind": _ENVIRONMENTS,
            "error.type": _ERRORS,
            "feature_flag.scheduled_changes": _FLAG,
        },
    ),
    _Event(
        "trial_started",
        BACK_END,
        3,
        {"schema.version": _VERSION, "trial.days": [14, 30], "organisation.plan": ["trial"]},
    ),
    _Event(
        "subscription_started",
        BACK_END,
        1,
        {
            "schema.version": _VERSION,
            "http.route": ["/api/admin/invoices", "/api/instance/plan"],
            "subscription.plan": ["startup", "enterprise"],
        },
    ),
)
assert sum(event.weight for event in _EVENTS) == 1_000

#: How many kinds stand for one event: enough for every value of its lists to occur.
_KINDS_AN_EVENT = 200
KINDS = tuple(kind for event in _EVENTS for kind in event.kinds(_KINDS_AN_EVENT))
EVENT_NAMES = tuple(event.name for event in _EVENTS)


@dataclass(frozen=True)
class Population:
    """`records` events in the order in which they are sent, and the sessions they belong to.

    Arrays of length `records`: `time_ns`, `observed_ns` (since the epoch), `kind` (index into
    KINDS), `session`. Arrays of length sessions: `user` of each session; of length USERS:
    `organisation` of each user. `event_id`: (records, 16) random bytes.
    """

    time_ns: npt.NDArray[np.int64]
    observed_ns: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int32]
    session: npt.NDArray[np.int32]
    event_id: npt.NDArray[np.uint8]
    user: npt.NDArray[np.int32]
    organisation: npt.NDArray[np.int32]


def populate(records: int, seed: int, end_ms: int) -> Population:
    """The events of the two days before `end_ms`. The same arguments give the same events.

    Sessions overlap, so that neighbouring records belong to different people, as in a sink.
    """
    rng = np.random.default_rng(seed)
    fewest, most = EVENTS_A_SESSION
    lengths = rng.integers(fewest, most + 1, size=records // fewest + 1)
    sessions = int(np.searchsorted(np.cumsum(lengths), records)) + 1
    session = np.repeat(np.arange(sessions, dtype=np.int32), lengths[:sessions])[:records]
    begins = end_ms - WINDOW_MS + rng.integers(0, WINDOW_MS - SESSION_MS - DELAY_MS, size=sessions)
    time_ms = begins[session] + rng.integers(0, SESSION_MS, size=records)
    order = np.argsort(time_ms, kind="stable")
    session, time_ms = session[order], time_ms[order]

    weights = np.array([event.weight for event in _EVENTS]) / 1_000
    event = rng.choice(len(_EVENTS), size=records, p=weights)
    kind = event * _KINDS_AN_EVENT + rng.integers(0, _KINDS_AN_EVENT, size=records)

    # Few people and organisations do much of it: the square of a uniform draw leans to 0.
    user = (rng.random(sessions) ** 2 * USERS).astype(np.int32)
    organisation = (rng.random(USERS) ** 2 * ORGANISATIONS).astype(np.int32)
    time_ns = time_ms * 1_000_000 + rng.integers(0, 1_000_000, size=records)
    observed_ns = time_ns + rng.integers(0, DELAY_MS * 1_000_000, size=records)
    return Population(
        time_ns=time_ns,
        observed_ns=observed_ns,
        kind=kind.astype(np.int32),
        session=session,
        event_id=_uuid7(rng, time_ms),
        user=user,
        organisation=organisation,
    )


def _uuid7(rng: np.random.Generator, time_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """(records, 16): version 7 UUIDs, 48 bits of time and 74 random ones."""
    ids = np.frombuffer(rng.bytes(16 * len(time_ms)), dtype=np.uint8).reshape(-1, 16).copy()
    ids[:, :6] = time_ms.astype(">i8").view(np.uint8).reshape(-1, 8)[:, 2:]
    ids[:, 6] = ids[:, 6] & 0x0F | 0x70
    ids[:, 8] = ids[:, 8] & 0x3F | 0x80
    return ids
