"""What happens in people's visits: the demo's events with raw ids, in no order. Pure and seeded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import NamedTuple

from telemetry_pipeline.demo.pages import PAGES, Page
from telemetry_pipeline.demo.population import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    SECOND_MS,
    Organisation,
    Person,
    Population,
    Visit,
)

Value = str | int | float | bool

FRONT_END = "web-app"
BACK_END = "core-api"
TRIAL_DAYS = 14
#: Use of the two features before this age of the trial decides whether it converts.
DECISION_DAYS = 8

_LONGEST_PAUSE_MS = 10 * MINUTE_MS
_CHANGE_REQUESTS_ROUTE = "/api/admin/projects/:projectId/change-requests"
_SCHEDULES_ROUTE = "/api/admin/projects/:projectId/schedules"


class Occurrence(NamedTuple):
    """One event as the application knows it. `time_ns` since the epoch; ids not yet hashed.

    `payload` holds the event's own attributes, keys and values as in the catalogue.
    """

    time_ns: int
    event_id: str
    name: str
    service: str
    organisation: str
    user: str
    session: str
    route: str | None
    payload: dict[str, Value]


@dataclass(frozen=True)
class _Pages:
    """The pages an organisation can reach, with cumulative weights to draw from."""

    pages: tuple[Page, ...]
    weights: tuple[float, ...]


def _reachable(change_requests: bool) -> _Pages:
    pages = tuple(page for page in PAGES if change_requests or not page.needs_change_requests)
    return _Pages(pages, tuple(accumulate(page.visits for page in pages)))


_REACHABLE = {enabled: _reachable(enabled) for enabled in (True, False)}


@dataclass
class Session:
    """A browser session under way; it knows its page and counts what session_ended reports."""

    person: Person
    raw_id: str
    start_ms: int
    page: Page = PAGES[0]
    pages_viewed: int = 0
    interactions: int = 0
    context: dict[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = organisation_context(self.person.organisation)


def organisation_context(organisation: Organisation) -> dict[str, Value]:
    """What the backend alone knows of an organisation: its flags and its plan."""
    return {
        "feature_flag.change_requests": organisation.change_requests,
        "feature_flag.scheduled_changes": organisation.scheduled_changes,
        "organisation.plan": organisation.plan,
    }


def uuid7(rng: Random, time_ms: int) -> str:
    """A version 7 UUID of this time, its 74 random bits taken from `rng`."""
    bits = rng.getrandbits(74)
    tail = 0x8000_0000_0000_0000 | bits & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{time_ms:012x}7{bits >> 62:03x}{tail:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def occurrences(population: Population) -> Iterator[Occurrence]:
    """Every event of the population that happened before the window's end."""
    end_ns = population.window.end_ms * 1_000_000
    for person, visits in zip(population.people, population.visits, strict=True):
        life = _Life(population, person)
        for occurrence in life.events(visits):
            if occurrence.time_ns < end_ns:
                yield occurrence


def view_page(rng: Random, session: Session, time_ms: int) -> Occurrence:
    """The person goes to a page, whichever it is."""
    reachable = _REACHABLE[session.person.organisation.change_requests]
    session.page = rng.choices(reachable.pages, cum_weights=reachable.weights)[0]
    session.pages_viewed += 1
    return _in_browser(rng, session, time_ms, "page_viewed", session.context)


def act(rng: Random, session: Session, time_ms: int, error_rate: float = 0.012) -> Occurrence:
    """The next thing a person does: another page, or something on this one."""
    draw = rng.random()
    page = session.page
    if draw < error_rate:
        return _client_error(rng, session, time_ms)
    if draw < 0.45:
        feature, surface = rng.choice(page.features)
        payload: dict[str, Value] = {"ui.feature": feature, "ui.surface": surface}
        return _in_browser(rng, session, time_ms, "feature_viewed", payload)
    if draw < 0.62 and page.filters:
        session.interactions += 1
        return _filter_changed(rng, session, time_ms)
    if draw < 0.72 and page.charts:
        session.interactions += 1
        return _chart_interacted(rng, session, time_ms)
    return view_page(rng, session, time_ms)


def end_session(rng: Random, session: Session, time_ms: int) -> Occurrence:
    """The session's last event, with what it counted."""
    payload: dict[str, Value] = {
        "session.duration_ms": time_ms - session.start_ms,
        "session.pages_viewed": session.pages_viewed,
        "session.interactions": session.interactions,
    }
    return _in_browser(rng, session, time_ms, "session_ended", payload)


def _client_error(rng: Random, session: Session, time_ms: int) -> Occurrence:
    kind = rng.choices(("TypeError", "ChunkLoadError", "NetworkError"), (5, 2, 3))[0]
    payload: dict[str, Value] = {"error.boundary": session.page.boundary, "error.type": kind}
    return _in_browser(rng, session, time_ms, "client_error", payload)


def _filter_changed(rng: Random, session: Session, time_ms: int) -> Occurrence:
    view, key = rng.choice(session.page.filters)
    payload: dict[str, Value] = {
        "ui.view": view,
        "ui.filter.key": key,
        "ui.filter.value_count": min(int(rng.expovariate(1 / 2.2)), 40),
    }
    return _in_browser(rng, session, time_ms, "filter_changed", payload)


def _chart_interacted(rng: Random, session: Session, time_ms: int) -> Occurrence:
    chart, surface = rng.choice(session.page.charts)
    action = rng.choices(("hover", "zoom", "toggle_series", "export"), (60, 18, 17, 5))[0]
    payload: dict[str, Value] = {"ui.chart": chart, "ui.action": action, "ui.surface": surface}
    return _in_browser(rng, session, time_ms, "chart_interacted", payload)


def _in_browser(
    rng: Random, session: Session, time_ms: int, name: str, payload: dict[str, Value]
) -> Occurrence:
    return Occurrence(
        time_ns=time_ms * 1_000_000,
        event_id=uuid7(rng, time_ms),
        name=name,
        service=FRONT_END,
        organisation=session.person.organisation.raw_id,
        user=session.person.raw_id,
        session=session.raw_id,
        route=session.page.route,
        payload=payload,
    )


def on_server(
    rng: Random,
    session: Session,
    time_ms: int,
    name: str,
    route: str | None,
    payload: dict[str, Value],
) -> Occurrence:
    """An event of the backend. Its clock counts microseconds; a browser's counts milliseconds."""
    return Occurrence(
        time_ns=time_ms * 1_000_000 + rng.randrange(1000) * 1000,
        event_id=uuid7(rng, time_ms),
        name=name,
        service=BACK_END,
        organisation=session.person.organisation.raw_id,
        user=session.person.raw_id,
        session=session.raw_id,
        route=route,
        payload=payload,
    )


def create_change_request(rng: Random, session: Session, time_ms: int) -> Occurrence:
    payload = {"environment.kind": _environment(rng), **session.context}
    return on_server(
        rng, session, time_ms, "change_request.created", _CHANGE_REQUESTS_ROUTE, payload
    )


def _environment(rng: Random) -> str:
    return rng.choices(("production", "staging", "development"), (62, 23, 15))[0]


class _Life:
    """One person's events over the whole window, in the order in which they are decided."""

    def __init__(self, population: Population, person: Person) -> None:
        self._rng = Random(f"{population.seed}/life/{person.raw_id}")
        self._person = person
        self._actions_per_length = population.actions_per_length
        self._window = population.window
        self._open_requests: list[Value] = []  # the environments they are for
        self._feature_days: set[tuple[str, int]] = set()
        self._used: set[str] = set()

    def events(self, visits: tuple[Visit, ...]) -> Iterator[Occurrence]:
        trial_ms: int | None = None
        for number, visit in enumerate(visits):
            session = Session(self._person, self._session_id(number), visit.start_ms)
            if number == 0 and self._person.starts_trial:
                trial_ms = visit.start_ms + SECOND_MS
                yield self._trial_started(session, trial_ms)
            yield from self._visit(session, visit)
        if trial_ms is not None:
            yield from self._conversion(trial_ms)

    def _session_id(self, number: int | str) -> str:
        return f"session-{self._person.raw_id}-{number}-{self._window.end_ms}"

    def _visit(self, session: Session, visit: Visit) -> Iterator[Occurrence]:
        rng = self._rng
        time_ms = visit.start_ms
        yield view_page(rng, session, time_ms)
        error_rate = self._error_rate(time_ms)
        for _ in range(round(visit.length * self._actions_per_length)):
            time_ms += self._pause_ms()
            yield act(rng, session, time_ms, error_rate)
        for occurrence in self._feature_use(session, time_ms):
            time_ms = max(time_ms, occurrence.time_ns // 1_000_000)
            yield occurrence
        if rng.random() < 0.92:  # a closed laptop reports no end
            yield end_session(rng, session, time_ms + self._pause_ms())

    def _pause_ms(self) -> int:
        return 800 + min(int(self._rng.expovariate(1 / 28_000)), _LONGEST_PAUSE_MS)

    def _error_rate(self, time_ms: int) -> float:
        """A bad release nine days before the end, mended after a day."""
        age_days = (self._window.end_ms - time_ms) / DAY_MS
        return 0.07 if 8 <= age_days < 9 else 0.012

    def _feature_use(self, session: Session, time_ms: int) -> Iterator[Occurrence]:
        """What the person does with the two features in this visit, after `time_ms`."""
        if self._uses_change_requests(time_ms):
            for _ in range(self._rng.choice((1, 1, 2))):
                time_ms += self._pause_ms()
                created = create_change_request(self._rng, session, time_ms)
                self._open_requests.append(created.payload["environment.kind"])
                self._note_use("change_requests", time_ms)
                yield created
        for environment in self._settled_requests():
            time_ms += self._pause_ms()
            yield self._settle_request(session, time_ms, environment)
        if self._uses_scheduled_changes(time_ms):
            self._note_use("scheduled_changes", time_ms)
            yield from self._schedule(session, time_ms + self._pause_ms())

    def _uses_change_requests(self, time_ms: int) -> bool:
        """From the first time on a habit, which fades slowly."""
        start_ms = self._person.change_requests_from_ms
        if start_ms is None or time_ms < start_ms:
            return False
        is_first = "change_requests" not in self._used
        return is_first or self._rng.random() < 0.15 + 0.3 * _decay(time_ms - start_ms, 40)

    def _uses_scheduled_changes(self, time_ms: int) -> bool:
        """Tried once, and soon forgotten."""
        start_ms = self._person.scheduled_changes_from_ms
        if start_ms is None or time_ms < start_ms:
            return False
        is_first = "scheduled_changes" not in self._used
        return is_first or self._rng.random() < 0.3 * _decay(time_ms - start_ms, 4)

    def _note_use(self, feature: str, time_ms: int) -> None:
        self._used.add(feature)
        self._feature_days.add((feature, time_ms // DAY_MS))

    def _settled_requests(self) -> list[Value]:
        """Takes the open change requests that are decided in this visit."""
        decided = [self._rng.random() < 0.55 for _ in self._open_requests]
        pairs = list(zip(self._open_requests, decided, strict=True))
        self._open_requests = [request for request, is_decided in pairs if not is_decided]
        return [request for request, is_decided in pairs if is_decided]

    def _settle_request(self, session: Session, time_ms: int, environment: Value) -> Occurrence:
        rng = self._rng
        payload: dict[str, Value] = {
            "environment.kind": environment,
            "change_request.approvals": rng.choices((1, 2, 3), (70, 24, 6))[0],
            **session.context,
        }
        name = "change_request.committed"
        if rng.random() < 0.09:
            name = "change_request.failed"
            payload["error.type"] = rng.choice(("ConflictError", "PermissionError"))
        self._note_use("change_requests", time_ms)
        return on_server(rng, session, time_ms, name, _CHANGE_REQUESTS_ROUTE, payload)

    def _schedule(self, session: Session, time_ms: int) -> Iterator[Occurrence]:
        """A scheduled change, and what became of it when it was due."""
        rng = self._rng
        delay_hours = round(min(0.5 + rng.expovariate(1 / 18), 240), 2)
        payload: dict[str, Value] = {"environment.kind": _environment(rng), **session.context}
        yield on_server(
            rng,
            session,
            time_ms,
            "scheduled_change.created",
            _SCHEDULES_ROUTE,
            {**payload, "scheduled_change.delay_hours": delay_hours},
        )
        due_ms = time_ms + int(delay_hours * HOUR_MS)
        # Nobody's browser is open when it is due: the scheduler's run is an API session.
        run = Session(session.person, self._session_id(f"due-{due_ms}"), due_ms)
        if rng.random() < 0.14:
            payload["error.type"] = rng.choice(("ConflictError", "FlagArchivedError"))
            yield on_server(rng, run, due_ms, "scheduled_change.failed", None, payload)
        else:
            yield on_server(rng, run, due_ms, "scheduled_change.committed", None, payload)

    def _trial_started(self, session: Session, time_ms: int) -> Occurrence:
        payload: dict[str, Value] = {"trial.days": TRIAL_DAYS, "organisation.plan": "trial"}
        return on_server(self._rng, session, time_ms, "trial_started", None, payload)

    def _conversion(self, trial_ms: int) -> Iterator[Occurrence]:
        """Perhaps a subscription: the likelier, the more the features were used early on."""
        rng = self._rng
        decision_day = (trial_ms + DECISION_DAYS * DAY_MS) // DAY_MS
        days = [feature for feature, day in self._feature_days if day < decision_day]
        if rng.random() >= conversion_chance(
            days.count("change_requests"), days.count("scheduled_changes")
        ):
            return
        time_ms = trial_ms + int(_conversion_age_days(rng) * DAY_MS)
        payment = Session(self._person, self._session_id("payment"), time_ms)
        plan = rng.choices(("startup", "enterprise"), (85, 15))[0]
        payload: dict[str, Value] = {"subscription.plan": plan}
        yield on_server(rng, payment, time_ms, "subscription_started", None, payload)


def conversion_chance(change_request_days: int, scheduled_change_days: int) -> float:
    """P(a trial converts) given on how many of its first 8 days each feature was used."""
    score = -2.3 + 1.0 * min(change_request_days, 4) + 0.7 * min(scheduled_change_days, 2)
    return 1 / (1 + math.exp(-score))


def _conversion_age_days(rng: Random) -> float:
    """Mostly days 8 to 11 of the trial; some people buy sooner, some at the very end."""
    draw = rng.random()
    if draw < 0.84:
        return rng.uniform(8.01, 10.99)
    return rng.uniform(3, 8) if draw < 0.9 else rng.uniform(11, TRIAL_DAYS)


def _decay(elapsed_ms: int, days: float) -> float:
    return math.exp(-elapsed_ms / DAY_MS / days)
