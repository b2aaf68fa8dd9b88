"""The demo's people behave like people, and the same seed gives the same people."""

from collections import Counter, defaultdict
from datetime import UTC, datetime
from random import Random
from statistics import mean
from uuid import UUID

import pytest

from telemetry_pipeline.demo.behaviour import Occurrence, conversion_chance, occurrences, uuid7
from telemetry_pipeline.demo.population import (
    DAY_MS,
    Person,
    Population,
    organisation_sizes,
    plan_population,
    window_until,
)

NOW = datetime(2026, 11, 24, 15, 30, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)
EVENTS = 200_000
CHANGE_REQUESTS = ("change_request.created", "change_request.committed")
SCHEDULED_CHANGES = ("scheduled_change.created",)


@pytest.fixture(scope="module")
def population() -> Population:
    return plan_population(7, 1500, 60, EVENTS, window_until(NOW, 30))


@pytest.fixture(scope="module")
def events(population: Population) -> list[Occurrence]:
    return list(occurrences(population))


@pytest.fixture(scope="module")
def active_days(events: list[Occurrence]) -> dict[str, set[int]]:
    """User -> days (since the epoch) with any event in a browser."""
    days: dict[str, set[int]] = defaultdict(set)
    for event in events:
        if event.service == "web-app":
            days[event.user].add(event.time_ns // (DAY_MS * 1_000_000))
    return days


def small(seed: int) -> list[Occurrence]:
    return list(occurrences(plan_population(seed, 50, 8, 2000, window_until(NOW, 30))))


def test_the_same_seed_gives_the_same_events_and_another_seed_others() -> None:
    assert small(seed=1) == small(seed=1)
    assert small(seed=1) != small(seed=2)


def test_the_population_produces_about_as_many_events_as_asked_for(
    events: list[Occurrence],
) -> None:
    assert len(events) == pytest.approx(EVENTS, rel=0.03)
    assert len(small(seed=1)) == pytest.approx(2000, rel=0.15)


def test_everything_happens_within_the_window(events: list[Occurrence]) -> None:
    times = [event.time_ns for event in events]

    assert min(times) >= (NOW_MS - 30 * DAY_MS) * 1_000_000
    assert max(times) < NOW_MS * 1_000_000


def test_organisation_sizes_follow_a_power_law_and_add_up() -> None:
    sizes = organisation_sizes(1500, 60)

    assert sum(sizes) == 1500
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= 1
    assert 8 < sizes[0] / sizes[9] < 12  # proportional to 1/rank: the tenth is a tenth


def test_there_is_no_population_without_somebody_for_each_organisation() -> None:
    with pytest.raises(ValueError, match="at least one"):
        organisation_sizes(3, 4)


def test_working_days_are_several_times_as_busy_as_weekends(events: list[Occurrence]) -> None:
    by_day = Counter(datetime.fromtimestamp(event.time_ns / 1e9, UTC).date() for event in events)
    whole_days = {day: count for day, count in by_day.items() if day != NOW.date()}
    weekdays = [count for day, count in whole_days.items() if day.weekday() < 5]
    weekends = [count for day, count in whole_days.items() if day.weekday() >= 5]

    assert min(weekdays[1:]) > max(weekends)
    assert mean(weekdays) > 3 * mean(weekends)


def test_working_hours_are_busier_than_nights(events: list[Occurrence]) -> None:
    by_hour = Counter(event.time_ns // 3_600_000_000_000 % 24 for event in events)

    assert sum(by_hour[hour] for hour in range(8, 18)) > 0.75 * len(events)
    assert sum(by_hour[hour] for hour in range(0, 5)) < 0.02 * len(events)


def test_change_requests_are_adopted_by_far_more_people_than_scheduled_changes(
    population: Population, events: list[Occurrence], active_days: dict[str, set[int]]
) -> None:
    people = [person for person in population.people if person.raw_id in active_days]
    requesters = users_of(events, CHANGE_REQUESTS)
    schedulers = users_of(events, SCHEDULED_CHANGES)
    may_request = {person.raw_id for person in people if person.organisation.change_requests}
    may_schedule = {person.raw_id for person in people if person.organisation.scheduled_changes}

    assert len(requesters) / len(may_request) == pytest.approx(0.45, abs=0.06)
    assert len(schedulers) / len(may_schedule) == pytest.approx(0.15, abs=0.05)


def test_nobody_uses_a_feature_that_is_off_and_not_everybody_has_them(
    population: Population, events: list[Occurrence]
) -> None:
    organisation_of = {person.raw_id: person.organisation for person in population.people}
    requesters = users_of(events, CHANGE_REQUESTS)
    schedulers = users_of(events, SCHEDULED_CHANGES)

    assert all(organisation_of[user].change_requests for user in requesters)
    assert all(organisation_of[user].scheduled_changes for user in schedulers)
    for enabled in (
        [organisation.change_requests for organisation in organisation_of.values()],
        [organisation.scheduled_changes for organisation in organisation_of.values()],
    ):
        assert 0.5 < mean(enabled) < 0.8


def test_who_tries_change_requests_comes_back_to_them_and_who_tries_schedules_does_not(
    events: list[Occurrence],
) -> None:
    assert returning_share(events, CHANGE_REQUESTS) > 1.5 * returning_share(
        events, SCHEDULED_CHANGES
    )


def test_fewer_newcomers_are_active_the_longer_ago_they_joined(
    population: Population, active_days: dict[str, set[int]]
) -> None:
    shares = [newcomers_active_in_week(population, active_days, week) for week in range(3)]

    assert shares[0] == 1.0  # everybody is there in the week of joining
    assert shares[0] > shares[1] > shares[2] > 0.2
    assert shares[1] < 0.85


def test_trials_convert_more_often_the_more_the_features_were_used() -> None:
    chances = [conversion_chance(days, 0) for days in range(5)]

    assert chances == sorted(chances)
    assert conversion_chance(0, 1) > conversion_chance(0, 0)
    assert conversion_chance(4, 0) > 4 * conversion_chance(0, 0)


def test_conversions_in_the_events_depend_on_feature_use_in_the_first_days(
    events: list[Occurrence],
) -> None:
    trials = {event.user: event.time_ns for event in events if event.name == "trial_started"}
    buyers = users_of(events, ("subscription_started",))
    day_ns = DAY_MS * 1_000_000
    settled = {user for user, time in trials.items() if time < NOW_MS * 1_000_000 - 11 * day_ns}
    users = {
        event.user
        for event in events
        if event.user in settled
        and event.name in CHANGE_REQUESTS + SCHEDULED_CHANGES
        and event.time_ns < trials[event.user] + 8 * day_ns
    }
    others = settled - users

    assert buyers <= trials.keys()
    assert min(len(users), len(others)) > 50
    assert len(buyers & users) / len(users) > 2 * len(buyers & others) / len(others)


def test_most_conversions_fall_between_day_8_and_day_11_of_the_trial(
    events: list[Occurrence],
) -> None:
    trials = {event.user: event.time_ns for event in events if event.name == "trial_started"}
    ages = [
        (event.time_ns - trials[event.user]) / (DAY_MS * 1_000_000)
        for event in events
        if event.name == "subscription_started"
    ]

    assert len(ages) > 30
    assert mean(8 <= age <= 11 for age in ages) > 0.7
    assert all(0 < age <= 14 for age in ages)


def test_a_session_ends_with_what_happened_in_it(events: list[Occurrence]) -> None:
    sessions: dict[str, list[Occurrence]] = defaultdict(list)
    for event in events:
        sessions[event.session].append(event)
    ended = [own for own in sessions.values() if own[-1].name == "session_ended"]

    assert len(ended) > 0.8 * len([own for own in sessions.values() if len(own) > 1])
    for own in ended:
        names = Counter(event.name for event in own)
        last = own[-1]
        start_ns = min(event.time_ns for event in own)
        duration_ms = (last.time_ns - start_ns) // 1_000_000
        assert last.time_ns == max(event.time_ns for event in own)
        assert last.payload == {
            "session.duration_ms": duration_ms,
            "session.pages_viewed": names["page_viewed"],
            "session.interactions": names["filter_changed"] + names["chart_interacted"],
        }


def test_failures_happen_and_are_the_exception(events: list[Occurrence]) -> None:
    names = Counter(event.name for event in events)

    for feature in ("change_request", "scheduled_change"):
        assert 0 < names[f"{feature}.failed"] < 0.3 * names[f"{feature}.committed"]
    assert 0 < names["client_error"] < 0.03 * len(events)


def test_event_ids_are_version_7_uuids_of_the_event_time(events: list[Occurrence]) -> None:
    for event in events[::500]:
        parsed = UUID(event.event_id)
        assert (parsed.version, parsed.variant) == (7, "specified in RFC 4122")
        assert parsed.int >> 80 == event.time_ns // 1_000_000
    assert len({event.event_id for event in events}) == len(events)
    assert uuid7(Random(1), NOW_MS) == uuid7(Random(1), NOW_MS)


def users_of(events: list[Occurrence], names: tuple[str, ...]) -> set[str]:
    return {event.user for event in events if event.name in names}


def returning_share(events: list[Occurrence], names: tuple[str, ...]) -> float:
    """Of those who used a feature before the window's last 7 days: who did so 2 to 7 days later."""
    days: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if event.name in names:
            days[event.user].append(event.time_ns // (DAY_MS * 1_000_000))
    last_day = NOW_MS // DAY_MS
    first_uses = {user: min(used) for user, used in days.items() if min(used) < last_day - 7}
    return mean(
        any(2 <= day - first <= 7 for day in days[user]) for user, first in first_uses.items()
    )


def newcomers_active_in_week(
    population: Population, active_days: dict[str, set[int]], week: int
) -> float:
    """Share of those who joined three weeks or more before the end, active in their n-th week."""
    cohort: list[Person] = [
        person
        for person in population.people
        if population.window.start_ms <= person.joined_ms < NOW_MS - 21 * DAY_MS
    ]
    assert len(cohort) > 100
    return mean(
        any(
            7 * week <= day - person.joined_ms // DAY_MS < 7 * week + 7
            for day in active_days[person.raw_id]
        )
        for person in cohort
    )
