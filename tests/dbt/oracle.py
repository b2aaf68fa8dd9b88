"""What the marts must say, computed slowly and independently: plain loops over dicts and sets.

Written from the definitions of the metrics, not from the models. Every function returns rows by
their grain, each row a dict of the mart's columns. Scope 'all' has the key None.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta
from statistics import median
from zoneinfo import ZoneInfo

from history import Event, Feature

Row = dict[str, object]


class Oracle:
    """The history as seen in one time zone, with the class of every event name."""

    def __init__(
        self,
        history: list[Event],
        classes: dict[str, str],
        features: tuple[Feature, ...],
        *,
        time_zone: str,
        today: date,
    ) -> None:
        self.history = history
        self.classes = classes
        self.features = features
        self.zone = ZoneInfo(time_zone)
        self.today = today

    def daily_active_users(self) -> dict[tuple[int | None, date], Row]:
        known = [event for event in self.history if event.user is not None]
        last_day = max(self.day(event) for event in known)
        rows: dict[tuple[int | None, date], Row] = {}
        for scope in self.scopes(known):
            mine = [event for event in known if scope in (None, event.org)]
            first_seen: dict[int, date] = {}
            for event in mine:
                user, day = _given(event.user), self.day(event)
                first_seen[user] = min(day, first_seen.get(user, day))
            day = min(first_seen.values())
            while day <= last_day:
                daily = self.users(mine, day, 1, business=True)
                weekly = self.users(mine, day, 7, business=True)
                monthly = self.users(mine, day, 30, business=True)
                of_day = [event for event in mine if self.day(event) == day]
                rows[scope, day] = {
                    "active_anonymous_users": len(self.users(mine, day, 1)),
                    "business_active_users": len(daily),
                    "new_users": sum(seen == day for seen in first_seen.values()),
                    "organisations": len({event.org for event in of_day} - {None}),
                    "events": len(of_day),
                    "business_events": sum(self.is_business(event) for event in of_day),
                    "weekly_active_anonymous_users": len(self.users(mine, day, 7)),
                    "weekly_business_active_users": len(weekly),
                    "monthly_active_anonymous_users": len(self.users(mine, day, 30)),
                    "monthly_business_active_users": len(monthly),
                    "dau_wau_ratio": len(daily) / len(weekly) if weekly else None,
                    "stickiness_ratio": len(daily) / len(monthly) if monthly else None,
                    "is_complete": day < self.today,
                }
                day += timedelta(days=1)
        return rows

    def feature_adoption(self) -> dict[tuple[int | None, str, date], Row]:
        placed = [event for event in self.history if event.org is not None]
        known = [event for event in placed if event.user is not None]
        active = {
            (event.org, event.user, self.week(event)) for event in known if self.is_business(event)
        }
        use: dict[tuple[int, int, str], set[date]] = defaultdict(set)
        enabled: set[tuple[int, str, date]] = set()
        for feature in self.features:
            for event in placed:
                if event.payload.get(feature.flag_key) is True:
                    enabled.add((_given(event.org), feature.name, self.week(event)))
            for event in known:
                if not feature.flag_key or event.name in feature.adopted_by:
                    enabled.add((_given(event.org), feature.name, self.week(event)))
                if event.name in feature.adopted_by:
                    use[_given(event.org), _given(event.user), feature.name].add(self.day(event))

        rows = {}
        for scope in self.scopes(placed):
            organisations = [org for org in self.scopes(placed) if org and scope in (None, org)]
            for feature_name in [feature.name for feature in self.features] + ["(any)"]:
                of_row = [
                    feature.name
                    for feature in self.features
                    if feature_name in ("(any)", feature.name)
                ]
                for week in {week for _, _, week in active}:
                    eligible: dict[int, set[int]] = defaultdict(set)
                    for org, user, active_week in active:
                        could = any((org, name, week) in enabled for name in of_row)
                        if could and active_week == week and org in organisations:
                            eligible[_given(user)].add(_given(org))
                    if not eligible:
                        continue
                    rows[scope, feature_name, week] = self._adoption(
                        eligible, of_row, week, organisations, active, use
                    )
        return rows

    def _adoption(
        self,
        eligible: dict[int, set[int]],
        of_row: list[str],
        week: date,
        organisations: list[int],
        active: set[tuple[int | None, int | None, date]],
        use: dict[tuple[int, int, str], set[date]],
    ) -> Row:
        """One row: who could have used the row's features in the week, and what became of it."""
        adopters, depth, breadth, days_to_adopt = 0, 0, 0, []
        for user, user_organisations in eligible.items():
            days = {
                day
                for org in user_organisations
                for name in of_row
                for day in use[org, user, name]
                if _monday(day) == week
            }
            if not days:
                continue
            adopters += 1
            depth += len(days)
            breadth += sum(
                any(
                    _monday(day) == week
                    for org in organisations
                    if (org, user, week) in active
                    for day in use[org, user, feature.name]
                )
                for feature in self.features
            )
            first_use = min(
                day for org in organisations for name in of_row for day in use[org, user, name]
            )
            if _monday(first_use) == week:
                first_seen = min(
                    self.day(event)
                    for event in self.history
                    if event.user == user and event.org in organisations
                )
                days_to_adopt.append((first_use - first_seen).days)
        return {
            "eligible_users": len(eligible),
            "adopters": adopters,
            "adoption_rate": adopters / len(eligible),
            "new_adopters": len(days_to_adopt),
            "organisations": len(set().union(*eligible.values())),
            "median_days_to_adopt": median(days_to_adopt) if days_to_adopt else None,
            "active_days_per_adopter": depth / adopters if adopters else None,
            "features_per_adopter": breadth / adopters if adopters else None,
            "is_complete": week + timedelta(days=7) <= self.today,
        }

    def feature_retention_weekly(self) -> dict[tuple[int | None, str, str, date, int], Row]:
        rows = {}
        for feature in self.features:
            starts = [
                event
                for event in self.history
                if event.user is not None and event.name in feature.adopted_by
            ]
            for (scope, kind, cohort, number), row in self.retention(starts).items():
                rows[scope, feature.name, kind, cohort, number] = row
        return rows

    def retention_weekly(self) -> dict[tuple[int | None, str, str, date, int], Row]:
        known = [event for event in self.history if event.user is not None]
        rows = {}
        for activity, starts in (
            ("any_event", known),
            ("business_event", [event for event in known if self.is_business(event)]),
        ):
            for (scope, kind, cohort, number), row in self.retention(starts).items():
                rows[scope, activity, kind, cohort, number] = row
        return rows

    def retention(self, starts: list[Event]) -> dict[tuple[int | None, str, date, int], Row]:
        """Cohorts of these start events, each of which is a return event, too."""
        last_week = max(self.week(event) for event in self.history if event.user is not None)
        rows = {}
        for scope in self.scopes(starts):
            weeks: dict[int, set[date]] = defaultdict(set)
            for event in starts:
                if scope in (None, event.org):
                    weeks[_given(event.user)].add(self.week(event))
            for cohort_week in set().union(*weeks.values()):
                cohorts = {
                    "recurring": {user for user in weeks if cohort_week in weeks[user]},
                    "first_time": {user for user in weeks if cohort_week == min(weeks[user])},
                }
                for kind, cohort in cohorts.items():
                    number, return_week = 0, cohort_week
                    while cohort and return_week <= last_week:
                        returned = sum(return_week in weeks[user] for user in cohort)
                        rows[scope, kind, cohort_week, number] = {
                            "return_week": return_week,
                            "cohort_users": len(cohort),
                            "returned_users": returned,
                            "retention_rate": returned / len(cohort),
                            "is_complete": return_week + timedelta(days=7) <= self.today,
                        }
                        number, return_week = number + 1, return_week + timedelta(days=7)
        return rows

    def users(
        self, events: list[Event], last_day: date, days: int, *, business: bool = False
    ) -> set[int]:
        """Who was active in the `days` days that end with `last_day`."""
        first_day = last_day - timedelta(days=days - 1)
        return {
            _given(event.user)
            for event in events
            if first_day <= self.day(event) <= last_day
            and (self.is_business(event) or not business)
        }

    def scopes(self, events: Iterable[Event]) -> list[int | None]:
        """All, and every organisation seen in the events."""
        return [None, *sorted({event.org for event in events if event.org is not None})]

    def is_business(self, event: Event) -> bool:
        return self.classes[event.name] == "business"

    def day(self, event: Event) -> date:
        return event.at.astimezone(self.zone).date()

    def week(self, event: Event) -> date:
        return _monday(self.day(event))


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _given(identifier: int | None) -> int:
    assert identifier is not None
    return identifier
