"""The demo's people: where they belong, when they joined, and when they visit. Pure and seeded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Literal

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

Plan = Literal["trial", "free", "startup", "enterprise"]

#: How likely a person is to work on a day, Monday first, relative to a Monday.
WEEKDAY_RHYTHM = (1.0, 1.0, 1.0, 0.95, 0.8, 0.16, 0.13)

#: Shares of the people (not of the organisations) for whom a flag is on.
CHANGE_REQUESTS_ENABLED = 0.7
SCHEDULED_CHANGES_ENABLED = 0.6

_VETERANS = 0.45  # share of the people who joined before the window
_QUICK_LEAVERS = 0.35  # share of the newcomers who leave within days
_ADOPTS_CHANGE_REQUESTS = 0.56  # of the eligible; fewer get there before they leave
_ADOPTS_SCHEDULED_CHANGES = 0.22
_MIN_EVENTS_PER_VISIT = 5


@dataclass(frozen=True)
class Window:
    """The time the demo covers: start inclusive, end exclusive, in ms since the epoch."""

    start_ms: int
    end_ms: int

    @property
    def days(self) -> float:
        return (self.end_ms - self.start_ms) / DAY_MS


@dataclass(frozen=True)
class Organisation:
    """A customer. `raw_id` is the id before it is hashed; the flags are the customer's own."""

    raw_id: str
    plan: Plan
    change_requests: bool
    scheduled_changes: bool
    utc_offset_ms: int


@dataclass(frozen=True)
class Person:
    """Somebody of an organisation. Times are ms since the epoch; None means never.

    `energy` (0..1) is the chance to be active on a Monday soon after joining.
    """

    raw_id: str
    organisation: Organisation
    joined_ms: int
    left_ms: int
    energy: float
    change_requests_from_ms: int | None
    scheduled_changes_from_ms: int | None
    starts_trial: bool


@dataclass(frozen=True)
class Visit:
    """One session in the interface: its start (ms since the epoch) and how long it is relative
    to the average one."""

    start_ms: int
    length: float


@dataclass(frozen=True)
class Population:
    """Everybody, with their visits in order of time. `visits[i]` belongs to `people[i]`.

    `actions_per_length` turns a visit's length into front-end events, so that the whole
    population produces about as many events as were asked for.
    """

    seed: int
    window: Window
    organisations: tuple[Organisation, ...]
    people: tuple[Person, ...]
    visits: tuple[tuple[Visit, ...], ...]
    actions_per_length: float


def window_until(now: datetime, days: int) -> Window:
    """The `days` up to `now`, which must be timezone-aware."""
    if now.tzinfo is None:
        raise ValueError("now must be timezone-aware")
    end_ms = int(now.timestamp() * 1000)
    return Window(end_ms - int(timedelta(days=days).total_seconds() * 1000), end_ms)


def plan_population(
    seed: int, users: int, organisations: int, events: int, window: Window
) -> Population:
    """People and visits for about `events` events. The same arguments give the same population."""
    customers = plan_organisations(seed, users, organisations)
    people = plan_people(seed, customers, window)
    visits = _thinned(seed, tuple(_visits(seed, person, window) for person in people), events)
    return Population(
        seed=seed,
        window=window,
        organisations=tuple(organisation for organisation, _ in customers),
        people=people,
        visits=visits,
        actions_per_length=_actions_per_length(visits, events),
    )


def plan_organisations(
    seed: int, users: int, organisations: int
) -> tuple[tuple[Organisation, int], ...]:
    """Organisations with their head counts, largest first; sizes follow a power law."""
    rng = Random(f"{seed}/organisations")
    sizes = organisation_sizes(users, organisations)
    change_requests = _spread(sizes, CHANGE_REQUESTS_ENABLED, rng)
    scheduled_changes = _spread(sizes, SCHEDULED_CHANGES_ENABLED, rng)
    return tuple(
        (
            Organisation(
                raw_id=f"org-{rank:04d}",
                plan=_plan(rank, rng),
                change_requests=change_requests[rank],
                scheduled_changes=scheduled_changes[rank],
                utc_offset_ms=rng.choice((0, 1, 1, 2, -5)) * HOUR_MS,
            ),
            size,
        )
        for rank, size in enumerate(sizes)
    )


def organisation_sizes(users: int, organisations: int) -> list[int]:
    """Head counts that sum to `users`, each at least 1, the n-th proportional to 1/n."""
    if not 1 <= organisations <= users:
        raise ValueError("there must be at least one organisation and one user for each")
    weights = [1 / rank for rank in range(1, organisations + 1)]
    spare = users - organisations
    shares = [spare * weight / sum(weights) for weight in weights]
    sizes = [1 + int(share) for share in shares]
    # The largest remainders get what rounding down left over.
    by_remainder = sorted(range(organisations), key=lambda rank: int(shares[rank]) - shares[rank])
    for rank in by_remainder[: users - sum(sizes)]:
        sizes[rank] += 1
    return sizes


def plan_people(
    seed: int, customers: tuple[tuple[Organisation, int], ...], window: Window
) -> tuple[Person, ...]:
    """The people of all organisations; their raw ids depend on nothing but their number."""
    members = [organisation for organisation, size in customers for _ in range(size)]
    return tuple(
        _person(seed, number, organisation, window) for number, organisation in enumerate(members)
    )


def _spread(sizes: list[int], share: float, rng: Random) -> list[bool]:
    """Switch organisations on so that about `share` of the people have it.

    Independent draws would not do: with power-law sizes, the largest one alone decides a third.
    """
    enabled, owed = [], rng.uniform(-0.2, 0.2) * sizes[0]
    for size in sizes:
        owed += share * size
        enabled.append(owed > size / 2)
        owed -= size if enabled[-1] else 0
    return enabled


def _plan(rank: int, rng: Random) -> Plan:
    if rank < 2:
        return "enterprise"
    draw = rng.random()
    if draw < 0.1:
        return "enterprise"
    if draw < 0.45:
        return "startup"
    return "free" if draw < 0.75 else "trial"


def _person(seed: int, number: int, organisation: Organisation, window: Window) -> Person:
    rng = Random(f"{seed}/person/{number}")
    is_veteran = rng.random() < _VETERANS
    adopts_requests = organisation.change_requests and rng.random() < _ADOPTS_CHANGE_REQUESTS
    adopts_schedules = organisation.scheduled_changes and rng.random() < _ADOPTS_SCHEDULED_CHANGES
    joined_ms = (
        window.start_ms - int(rng.uniform(1, 120) * DAY_MS)
        if is_veteran
        else _joining_time(rng, organisation, window)
    )
    stay_days = _stay_days(rng, is_veteran) * (1.8 if adopts_requests else 1.0)
    # Scheduled changes are new in the window, also for those who have been there for long.
    schedules_after_days = rng.uniform(0, window.days) if is_veteran else rng.expovariate(1 / 3)
    return Person(
        raw_id=f"user-{number:05d}",
        organisation=organisation,
        joined_ms=joined_ms,
        left_ms=max(joined_ms, window.start_ms) + int(stay_days * DAY_MS),
        energy=min(1.0, 0.3 + 0.9 * rng.betavariate(2, 2)),
        change_requests_from_ms=(
            joined_ms + int(rng.expovariate(1 / 2.5) * DAY_MS) if adopts_requests else None
        ),
        scheduled_changes_from_ms=(
            max(joined_ms, window.start_ms) + int(schedules_after_days * DAY_MS)
            if adopts_schedules
            else None
        ),
        starts_trial=(not is_veteran and organisation.plan != "enterprise" and rng.random() < 0.9),
    )


def _joining_time(rng: Random, organisation: Organisation, window: Window) -> int:
    """A working hour within the window, rarely on a weekend."""
    for _ in range(100):
        day_ms = _day_start(window.start_ms + int(rng.uniform(0, window.days) * DAY_MS))
        start_ms = _visit_start(rng, day_ms, organisation)
        is_inside = window.start_ms <= start_ms < window.end_ms
        if is_inside and rng.random() < WEEKDAY_RHYTHM[_weekday(day_ms)]:
            return start_ms
    return (window.start_ms + window.end_ms) // 2  # a window too short to hold a working hour


def _stay_days(rng: Random, is_veteran: bool) -> float:
    if not is_veteran and rng.random() < _QUICK_LEAVERS:
        return rng.expovariate(1 / 3)
    return rng.expovariate(1 / 65)


def _visits(seed: int, person: Person, window: Window) -> tuple[Visit, ...]:
    rng = Random(f"{seed}/visits/{person.raw_id}")
    starts: list[int] = []
    if person.joined_ms >= window.start_ms:
        starts.append(person.joined_ms)
    first_day = _day_start(max(person.joined_ms, window.start_ms))
    for day_ms in range(first_day, window.end_ms, DAY_MS):
        if rng.random() < _chance_of_work(person, day_ms):
            count = rng.choices((1, 2, 3, 4), (60, 25, 10, 5))[0]
            starts += [_visit_start(rng, day_ms, person.organisation) for _ in range(count)]
    last_ms = min(person.left_ms, window.end_ms - 1)
    first_ms = max(person.joined_ms, window.start_ms)
    kept = sorted(start for start in starts if first_ms <= start <= last_ms)
    return tuple(Visit(start, 0.25 + 0.75 * rng.expovariate(1)) for start in kept)


def _chance_of_work(person: Person, day_ms: int) -> float:
    age_days = max(0, day_ms - person.joined_ms) / DAY_MS
    habit = 0.55 + 0.45 * math.exp(-age_days / 8)
    return person.energy * habit * WEEKDAY_RHYTHM[_weekday(day_ms)]


def _visit_start(rng: Random, day_ms: int, organisation: Organisation) -> int:
    """Mostly late morning or mid-afternoon in the organisation's own time."""
    draw = rng.random()
    if draw < 0.4:
        hour = rng.gauss(10.5, 1.4)
    elif draw < 0.8:
        hour = rng.gauss(14.8, 1.7)
    else:
        hour = rng.uniform(7, 22)
    local_ms = int(min(max(hour, 0), 23.99) * HOUR_MS)
    return day_ms + local_ms - organisation.utc_offset_ms


def _thinned(
    seed: int, visits: tuple[tuple[Visit, ...], ...], events: int
) -> tuple[tuple[Visit, ...], ...]:
    """Drop visits, never a person's first, when there are too many for so few events."""
    total = sum(len(own) for own in visits)
    keep = events / _MIN_EVENTS_PER_VISIT / total if total else 1.0
    if keep >= 1:
        return visits
    rng = Random(f"{seed}/thinned")
    return tuple(
        tuple(visit for place, visit in enumerate(own) if place == 0 or rng.random() < keep)
        for own in visits
    )


def _actions_per_length(visits: tuple[tuple[Visit, ...], ...], events: int) -> float:
    count = sum(len(own) for own in visits)
    length = sum(visit.length for own in visits for visit in own)
    # Beside its actions a visit has its first page, mostly its end, and what the backend adds.
    return max(0.0, events - 2.3 * count) / length if length else 0.0


def _day_start(time_ms: int) -> int:
    return time_ms - time_ms % DAY_MS


def _weekday(day_ms: int) -> int:
    """0 is Monday; the epoch's first day was a Thursday."""
    return (day_ms // DAY_MS + 3) % 7
