"""Seeded events whose fate is known before they are sent."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

Value = str | int | bool

MINUTE_MS = 60_000
DAY_MS = 86_400_000
ROUTE = "/projects/:projectId/features"
SERVICES = ("web-app", "core-api")
SCHEMA_VERSION = "2026-05-telemetry-v1"

#: What the driver adds to the catalogue and takes away again (policy.py); the repository's
#: catalogue must not have it.
WIDENED_SURFACE = "hologram"
PASSING_EVENT = "chaos.probe"


class Fate(enum.Enum):
    """What must become of an event."""

    ACCEPTED = "accepted"
    UNKNOWN_EVENT = "unknown_event"
    INVALID_ATTRIBUTE = "invalid_attribute"
    DENIED = "consent_denied"
    #: Accepted or rejected, as the catalogue stands when its slice is judged; never both at once.
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Event:
    """One event as the application knows it: raw ids, attributes of the catalogue as payload."""

    event_id: str
    name: str
    time_ms: int
    service: str
    organisation: str
    user: str
    session: str
    payload: Mapping[str, Value]
    fate: Fate


_FATES = (Fate.ACCEPTED, Fate.UNKNOWN_EVENT, Fate.INVALID_ATTRIBUTE, Fate.DENIED, Fate.EITHER)
_WEIGHTS = (90, 2, 2, 4, 2)


class EventStream:
    """The same seed and name give the same events; `now_ms` is when the run began."""

    def __init__(self, seed: int, name: str, now_ms: int) -> None:
        self._rng = Random(f"{seed}/{name}")
        self._now_ms = now_ms

    def take(self, count: int) -> list[Event]:
        """The next `count` events: of one session, as one batch of a client would be."""
        rng = self._rng
        organisation = f"org-{rng.randrange(8)}"
        user = f"{organisation}/user-{rng.randrange(50)}"
        session = f"{user}/{rng.randrange(20)}"
        service = rng.choice(SERVICES)
        return [self._event(service, organisation, user, session) for _ in range(count)]

    def _event(self, service: str, organisation: str, user: str, session: str) -> Event:
        rng = self._rng
        (fate,) = rng.choices(_FATES, _WEIGHTS)
        name, payload = self._content(fate)
        return Event(
            event_id=str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            name=name,
            time_ms=self._time_ms(),
            service=service,
            organisation=organisation,
            user=user,
            session=session,
            payload=payload,
            fate=fate,
        )

    def _time_ms(self) -> int:
        """Most of the last hours, some of the last four weeks: a slice fills several partitions."""
        reach = 120 * MINUTE_MS if self._rng.random() < 0.8 else 28 * DAY_MS
        return self._now_ms - self._rng.randrange(reach)

    def _content(self, fate: Fate) -> tuple[str, dict[str, Value]]:
        rng = self._rng
        if fate is Fate.UNKNOWN_EVENT:
            return "chaos.unheard_of", {}
        if fate is Fate.INVALID_ATTRIBUTE:
            return "feature_viewed", {"ui.feature": "flags", "ui.surface": "nowhere"}
        if fate is Fate.EITHER:
            if rng.random() < 0.5:
                return PASSING_EVENT, {}
            return "feature_viewed", {"ui.feature": "flags", "ui.surface": WIDENED_SURFACE}
        kind = rng.randrange(4)
        if kind == 0:
            return "page_viewed", {"organisation.plan": "free"}
        if kind == 1:
            return "feature_viewed", {
                "ui.feature": f"feature_{rng.randrange(30)}",
                "ui.surface": "page",
            }
        if kind == 2:
            return "filter_changed", {
                "ui.view": "audit_log",
                "ui.filter.key": "environment",
                "ui.filter.value_count": rng.randrange(20),
            }
        return "change_request.committed", {
            "environment.kind": "production",
            "change_request.approvals": rng.randrange(4),
            "feature_flag.change_requests": True,
        }
