"""A trickle of fresh events for a running demo: people who are in the product just now."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from telemetry_pipeline.demo.behaviour import (
    Occurrence,
    Session,
    act,
    create_change_request,
    end_session,
    view_page,
)
from telemetry_pipeline.demo.otel import Telemetry
from telemetry_pipeline.demo.population import (
    Person,
    plan_organisations,
    plan_people,
    window_until,
)
from telemetry_pipeline.demo.sink import FileSink
from telemetry_pipeline.demo.wire import EdgeIds, deliver

_VISITORS = 12  # how many people are in the product at a time


def emit_live(
    sink_dir: Path,
    edge_key_id: str,
    edge_key: bytes,
    *,
    stop: Callable[[], bool],
    events_per_second: float = 5.0,
    seed: int = 7,
    users: int = 1500,
    organisations: int = 60,
    rotate_megabytes: float = 8,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Emit events that occur now until `stop()` is true; returns how many (all acceptable).

    The people are those of emit() with the same seed, users and organisations. About once a
    second (or with every event, if they are rarer) what happened since is appended to the sink
    as one line; the sink must have no other writer. `stop` is asked before each event.
    """
    crowd = _Crowd(seed, users, organisations, clock())
    edge_ids = EdgeIds(edge_key_id, edge_key)
    events_a_line = max(1, round(events_per_second))
    emitted = 0
    with FileSink(sink_dir, rotate_megabytes) as sink:
        telemetry = Telemetry(lambda line: sink.write(line, clock()))
        try:
            while not stop():
                now_ms = int(clock().timestamp() * 1000)
                occurrence = crowd.next_event(now_ms)
                telemetry.emit(deliver(occurrence, edge_ids, occurrence.time_ns))
                emitted += 1
                if emitted % events_a_line == 0:
                    telemetry.flush()
                sleep(1 / events_per_second)
        finally:
            telemetry.flush()
    return emitted


class _Crowd:
    """The people who are in the product; somebody leaves, somebody else comes."""

    def __init__(self, seed: int, users: int, organisations: int, now: datetime) -> None:
        customers = plan_organisations(seed, users, min(organisations, users))
        self._people: tuple[Person, ...] = plan_people(seed, customers, window_until(now, 30))
        # Seeded by the time as well: a second run must not repeat the first one's ids.
        self._rng = Random(f"{seed}/live/{now.timestamp()}")
        self._sessions: list[Session] = []

    def next_event(self, now_ms: int) -> Occurrence:
        rng = self._rng
        if len(self._sessions) < _VISITORS:
            return self._arrive(now_ms)
        place = rng.randrange(len(self._sessions))
        session = self._sessions[place]
        if rng.random() < 0.08:
            del self._sessions[place]
            return end_session(rng, session, now_ms)
        if session.person.organisation.change_requests and rng.random() < 0.02:
            return create_change_request(rng, session, now_ms)
        return act(rng, session, now_ms)

    def _arrive(self, now_ms: int) -> Occurrence:
        person = self._rng.choice(self._people)
        session = Session(person, f"live-{person.raw_id}-{self._rng.getrandbits(64):x}", now_ms)
        self._sessions.append(session)
        return view_page(self._rng, session, now_ms)
