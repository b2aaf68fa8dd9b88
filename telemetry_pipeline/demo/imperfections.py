"""What goes wrong on purpose: late, repeated, malformed and forbidden input, seeded and counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random

from telemetry_pipeline.demo.behaviour import Value, uuid7
from telemetry_pipeline.demo.otel import Telemetry
from telemetry_pipeline.demo.wire import Delivery, RawLine

Attributes = dict[str, Value]
Parcel = Delivery | RawLine

EXPIRED_AGE = timedelta(days=200)

_SECOND_NS = 1_000_000_000
_HOUR_NS = 3600 * _SECOND_NS
_DAY_NS = 24 * _HOUR_NS
_LATE = 0.02
_REPEATED = 0.01
_LONGEST_REPEAT_NS = 6 * _DAY_NS
_FEWEST_OF_A_KIND = 20


@dataclass
class Tally:
    """How many records each outcome has, and what must appear in no table."""

    accepted: int = 0
    duplicates: int = 0
    late: int = 0
    unknown_attributes: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    canaries: list[str] = field(default_factory=list)

    def canary(self) -> str:
        """A new e-mail address that exists nowhere else."""
        self.canaries.append(f"canary-{len(self.canaries) + 1}@example.com")
        return self.canaries[-1]


def delivery_time(rng: Random, time_ns: int, now_ns: int, tally: Tally) -> int:
    """When an event that happened at `time_ns` reaches the sink: mostly within seconds."""
    prompt_ns = min(time_ns + int((0.2 + rng.expovariate(1 / 2.5)) * _SECOND_NS), now_ns)
    if rng.random() >= _LATE or time_ns > now_ns - 2 * _HOUR_NS:
        return prompt_ns
    hours = rng.uniform(1, 20) if rng.random() < 0.6 else rng.uniform(24, 240)
    late_ns = time_ns + int(hours * _HOUR_NS)
    if late_ns > now_ns:
        late_ns = int(rng.uniform(time_ns + _HOUR_NS, now_ns))
    tally.late += 1
    return late_ns


def with_repeats(
    rng: Random, deliveries: Iterable[Delivery], now_ns: int, tally: Tally
) -> list[Parcel]:
    """All deliveries, and about one in a hundred of them again: at once or up to days later."""
    parcels: list[Parcel] = []
    for delivery in deliveries:
        parcels.append(delivery)
        tally.accepted += 1
        if rng.random() < _REPEATED:
            parcels.append(delivery._replace(delivered_ns=_repeat_time(rng, delivery, now_ns)))
            tally.duplicates += 1
    return parcels


def _repeat_time(rng: Random, delivery: Delivery, now_ns: int) -> int:
    """The same time puts both copies side by side: the sort by time is stable."""
    latest_ns = min(now_ns, delivery.delivered_ns + _LONGEST_REPEAT_NS)
    if rng.random() < 0.5 or latest_ns - delivery.delivered_ns < _HOUR_NS:
        return delivery.delivered_ns
    return int(rng.uniform(delivery.delivered_ns + _HOUR_NS, latest_ns))


@dataclass(frozen=True)
class _Defect:
    """A way in which a good record is spoilt.

    `reason` is the expected one of a rejection or drop, '' if the record is accepted all the
    same. `donor` names the event that is spoilt, '' for any. `spoil` changes the attributes of a
    copy in place and may return a delivery to use instead. The copy has an event id of its own,
    unless `reuses_event_id`: what is rejected for its attributes conflicts with nothing.
    """

    kind: str
    reason: str
    spoil: Callable[[Random, Delivery, Tally], Delivery]
    donor: str = ""
    is_drop: bool = False
    reuses_event_id: bool = False


_Spoil = Callable[[Random, Delivery, Tally], Delivery]


def _setting(key: str, *values: Value) -> _Spoil:
    """Set `key` to one of the values."""

    def spoil(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
        delivery.attributes[key] = rng.choice(values)
        return delivery

    return spoil


def _without(key: str) -> _Spoil:
    def spoil(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
        del delivery.attributes[key]
        return delivery

    return spoil


def _raw_id(key: str, prefix: str) -> _Spoil:
    """An id that nobody hashed, or that looks hashed only at a glance."""

    def spoil(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
        hashed = str(delivery.attributes[key])
        delivery.attributes[key] = rng.choice(
            (f"{prefix}-{rng.randrange(10_000):05d}", hashed[:-1], hashed.upper(), hashed[-64:])
        )
        return delivery

    return spoil


def _unknown_event(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
    return delivery._replace(name=rng.choice(("page_view", "checkout.completed", "debug_event")))


def _not_an_event(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
    return delivery._replace(name=None, body=f"signed in as {tally.canary()}")


def _expired(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
    age_ns = int(EXPIRED_AGE.total_seconds()) * _SECOND_NS
    old = delivery._replace(time_ns=delivery.delivered_ns - age_ns - rng.randrange(_DAY_NS))
    old.attributes["event.id"] = uuid7(rng, old.time_ns // 1_000_000)
    return old


def _unknown_attribute(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
    delivery.attributes["browser.language"] = rng.choice(("en-GB", "nb-NO", "de-DE"))
    delivery.attributes["customer.contact"] = tally.canary()
    tally.unknown_attributes += 2
    return delivery


def _email(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
    delivery.attributes["user.email"] = tally.canary()
    return delivery


def _email_in_body(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
    return delivery._replace(body=f"viewed by {tally.canary()}")


def _denied(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
    delivery.attributes["consent.analytics"] = "denied"
    delivery.attributes["user.email"] = tally.canary()
    return delivery


def _both(
    first: _Spoil,
    second: _Spoil,
) -> _Spoil:
    """Two defects in one record: the order of judgement decides which one counts."""

    def spoil(rng: Random, delivery: Delivery, tally: Tally) -> Delivery:
        return second(rng, first(rng, delivery, tally), tally)

    return spoil


_RAW_USER = _raw_id("enduser.pseudo.id", "user")

_DEFECTS = (
    _Defect("raw organisation", "raw_identifier", _raw_id("organisation.id", "org")),
    _Defect("raw user", "raw_identifier", _RAW_USER),
    _Defect("raw session", "raw_identifier", _raw_id("session.id", "session")),
    _Defect("unknown event", "unknown_event", _unknown_event),
    _Defect(
        "wrong type",
        "invalid_attribute",
        _setting("ui.filter.value_count", "three", 2.5, True),
        donor="filter_changed",
    ),
    _Defect(
        "flag as text",
        "invalid_attribute",
        _setting("feature_flag.change_requests", "true", "on", 1),
        donor="page_viewed",
    ),
    _Defect(
        "outside the enum",
        "invalid_attribute",
        _setting("ui.surface", "tooltip", "Page", ""),
        donor="feature_viewed",
    ),
    _Defect(
        "out of range",
        "invalid_attribute",
        _setting("session.duration_ms", -1, 604_800_001),
        donor="session_ended",
    ),
    _Defect(
        "pattern violated",
        "invalid_attribute",
        _setting("url.template", "/projects/4711/features", "projects", "https://example.com/x"),
        donor="page_viewed",
    ),
    _Defect("feature missing", "missing_attribute", _without("ui.feature"), donor="feature_viewed"),
    _Defect("chart missing", "missing_attribute", _without("ui.chart"), donor="chart_interacted"),
    _Defect("not an event", "not_an_event", _not_an_event, is_drop=True),
    _Defect("consent denied", "consent_denied", _denied, is_drop=True),
    _Defect("consent absent", "consent_absent", _without("consent.analytics"), is_drop=True),
    _Defect("expired", "expired", _expired, is_drop=True),
    _Defect("denied and raw", "consent_denied", _both(_denied, _RAW_USER), is_drop=True),
    _Defect("unknown and expired", "unknown_event", _both(_unknown_event, _expired)),
    _Defect("expired and raw", "expired", _both(_expired, _RAW_USER), is_drop=True),
    _Defect(
        "raw and invalid",
        "raw_identifier",
        _both(_RAW_USER, _setting("url.template", "no route")),
        donor="page_viewed",
    ),
    _Defect(
        "invalid under a used id",
        "invalid_attribute",
        _setting("ui.feature", "Feature List", "x", "1st"),
        donor="feature_viewed",
        reuses_event_id=True,
    ),
    _Defect("unknown attributes", "", _unknown_attribute),
    _Defect("e-mail attribute", "", _email),
    _Defect("e-mail in the body", "", _email_in_body),
)


def defective(rng: Random, good: list[Delivery], tally: Tally) -> list[Parcel]:
    """Spoilt copies of good records, at least 20 of each kind."""
    donors = _by_name(good)
    parcels: list[Parcel] = []
    for defect in _DEFECTS:
        candidates = donors.get(defect.donor, []) if defect.donor else good
        if not candidates:
            raise ValueError(f"too few events: there is no {defect.donor} to spoil")
        for _ in range(_FEWEST_OF_A_KIND + rng.randrange(12)):
            copy = _copy(rng, rng.choice(candidates), defect.reuses_event_id)
            parcels.append(defect.spoil(rng, copy, tally))
            _count(defect, tally)
    return parcels


def _by_name(good: list[Delivery]) -> dict[str, list[Delivery]]:
    donors: dict[str, list[Delivery]] = {}
    for delivery in good:
        donors.setdefault(str(delivery.name), []).append(delivery)
    return donors


def _copy(rng: Random, delivery: Delivery, reuses_event_id: bool) -> Delivery:
    attributes = dict(delivery.attributes)
    if not reuses_event_id:
        attributes["event.id"] = uuid7(rng, delivery.time_ns // 1_000_000)
    return delivery._replace(attributes=attributes)


def _count(defect: _Defect, tally: Tally) -> None:
    tally.kinds[defect.kind] += 1
    if not defect.reason:
        tally.accepted += 1
    elif defect.is_drop:
        tally.dropped[defect.reason] += 1
    else:
        tally.rejected[defect.reason] += 1


def conflicting(rng: Random, good: list[Delivery], now_ns: int, tally: Tally) -> list[Parcel]:
    """Other events under an event id that was used earlier in the sink, for the same day.

    Some carry another time, some another name; `good` must hold each event once.
    """
    victims = [
        delivery
        for delivery in good
        if delivery.name in _OTHER_NAMES and delivery.delivered_ns < now_ns - _HOUR_NS
    ]
    parcels: list[Parcel] = []
    for kind, change in (
        ("used id, other time", _at_another_time),
        ("used id, other name", _renamed),
    ):
        for victim in rng.sample(victims, _FEWEST_OF_A_KIND + rng.randrange(12)):
            latest_ns = min(victim.delivered_ns + _DAY_NS, now_ns)
            later_ns = int(rng.uniform(victim.delivered_ns + _SECOND_NS, latest_ns))
            parcels.append(change(rng, victim)._replace(delivered_ns=later_ns))
            tally.rejected["event_id_conflict"] += 1
            tally.kinds[kind] += 1
    return parcels


def _at_another_time(rng: Random, victim: Delivery) -> Delivery:
    """Seconds earlier, or after midnight at least a second later: the day stays the same."""
    since_midnight_ns = victim.time_ns % _DAY_NS
    earlier_ns = rng.randrange(1, 300) * _SECOND_NS
    shift_ns = -earlier_ns if since_midnight_ns > earlier_ns else _SECOND_NS
    return victim._replace(time_ns=victim.time_ns + shift_ns)


#: Another event that a record can pass for, with what it then has to carry and must not carry.
_OTHER_NAMES: dict[str, tuple[str, Attributes, tuple[str, ...]]] = {
    "page_viewed": (
        "feature_viewed",
        {"ui.feature": "feature_list", "ui.surface": "page"},
        ("feature_flag.change_requests", "feature_flag.scheduled_changes", "organisation.plan"),
    ),
    "feature_viewed": ("page_viewed", {}, ("ui.feature", "ui.surface")),
}


def _renamed(rng: Random, victim: Delivery) -> Delivery:
    name, added, removed = _OTHER_NAMES[str(victim.name)]
    attributes = {key: value for key, value in victim.attributes.items() if key not in removed}
    return victim._replace(name=name, attributes={**attributes, **added})


def broken_lines(rng: Random, good: list[Delivery], tally: Tally) -> list[Parcel]:
    """Lines that hold no log records: half a line, no JSON at all, another signal's JSON."""
    makers: tuple[tuple[str, str, Callable[[Random, Delivery], bytes]], ...] = (
        ("half a line", "undecodable", _half_a_line),
        ("not JSON", "undecodable", _not_json),
        ("another signal", "not_logs", _another_signal),
    )
    parcels: list[Parcel] = []
    for kind, reason, make in makers:
        for _ in range(_FEWEST_OF_A_KIND + rng.randrange(12)):
            donor = rng.choice(good)
            parcels.append(RawLine(donor.delivered_ns, make(rng, donor)))
            tally.rejected[reason] += 1
            tally.kinds[kind] += 1
    return parcels


def _half_a_line(rng: Random, donor: Delivery) -> bytes:
    lines: list[bytes] = []
    telemetry = Telemetry(lines.append)
    telemetry.emit(donor)
    telemetry.flush()
    return lines[0][: rng.randrange(1, len(lines[0]))]


def _not_json(rng: Random, donor: Delivery) -> bytes:
    """Another program's output in the same file; no two lines are alike."""
    number = str(rng.getrandbits(48)).encode()
    return rng.choice(
        (
            b"panic: runtime error, goroutine %s [running]",
            b"{'resourceLogs': [], 'batch': %s}",
            b'{"resourceLogs":[],"batch":%s}}',
            b"\xff\xfe\x80 not even text: %s",
            b"<html><body>502 Bad Gateway (request %s)</body></html>",
        )
    ) % (number,)


def _another_signal(rng: Random, donor: Delivery) -> bytes:
    span = {
        "traceId": f"{rng.getrandbits(128):032x}",
        "spanId": f"{rng.getrandbits(64):016x}",
        "name": "GET /api/admin/projects",
        "startTimeUnixNano": str(donor.time_ns),
        "endTimeUnixNano": str(donor.time_ns + 12_000_000),
    }
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    return json.dumps(document, separators=(",", ":")).encode()
