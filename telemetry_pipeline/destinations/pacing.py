"""Which events may go into the next request, and when: the limits of a destination, kept."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from telemetry_pipeline.destinations.base import Limits, WireEvent

# A limit per second is kept for slightly more than a second, so that rounding never breaks it.
_SECOND = 1.05


@dataclass
class _Line:
    """One subject's waiting events, in order, and what of it was sent lately."""

    waiting: deque[WireEvent] = field(default_factory=deque)
    sent: deque[tuple[float, int]] = field(default_factory=deque)  # (when answered, how many)

    def sent_within(self, now: float) -> int:
        while self.sent and self.sent[0][0] <= now - _SECOND:
            self.sent.popleft()
        return sum(count for _, count in self.sent)


class Pacer:
    """A queue per subject (user, else device), so that one subject's pause holds up nobody else.

    Times are seconds of any one monotonic clock. Only one request is under way at a time: what it
    held counts against its subjects from the moment its answer came, which is later than the
    moment the destination counted it.
    """

    def __init__(self, limits: Limits, request_overhead: int) -> None:
        self._limits = limits
        self._overhead = request_overhead
        self._max_events = limits.events_per_request
        if limits.events_per_second is not None:
            self._max_events = min(self._max_events, limits.events_per_second)
        self._max_bytes = limits.bytes_per_request
        self._lines: dict[str, _Line] = {}
        self._ready: deque[str] = deque()
        self._paused: list[tuple[float, str]] = []  # a heap of (until, subject)
        self._set_aside: set[str] = set()
        self._not_before = 0.0
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Events not yet taken into a request, those set aside included."""
        return self._waiting

    @property
    def has_ready(self) -> bool:
        """Whether a subject waits that is not paused; a pause of the whole may still hold it."""
        return bool(self._ready)

    def add(self, events: Iterable[WireEvent], now: float) -> None:
        """Queue events; the subjects with the most go first, because they take longest."""
        self._forget_idle(now)
        fresh: dict[str, list[WireEvent]] = {}
        for event in events:
            fresh.setdefault(event.subject, []).append(event)
        for subject in sorted(fresh, key=lambda name: -len(fresh[name])):
            line = self._lines.setdefault(subject, _Line())
            if not line.waiting and subject not in self._set_aside:
                self._ready.append(subject)
            line.waiting.extend(fresh[subject])
            self._waiting += len(fresh[subject])

    def put_back(self, events: Sequence[WireEvent]) -> None:
        """Queue the events of a failed request again, before the others of their subjects."""
        for event in reversed(events):
            line = self._lines.setdefault(event.subject, _Line())
            if not line.waiting and event.subject not in self._set_aside:
                self._ready.appendleft(event.subject)
            line.waiting.appendleft(event)
        self._waiting += len(events)

    def pause(self, subjects: Iterable[str], until: float) -> None:
        """Hold these subjects back until a time; the others go on."""
        names = {name for name in subjects if name in self._lines} - self._set_aside
        self._ready = deque(name for name in self._ready if name not in names)
        self._paused = [item for item in self._paused if item[1] not in names]
        self._paused.extend((until, name) for name in names if self._lines[name].waiting)
        heapq.heapify(self._paused)

    def set_aside(self, subjects: Iterable[str]) -> None:
        """Send nothing more of these subjects."""
        self._set_aside.update(subjects)
        self._ready = deque(name for name in self._ready if name not in self._set_aside)
        self._paused = [item for item in self._paused if item[1] not in self._set_aside]
        heapq.heapify(self._paused)

    def pause_all(self, until: float) -> None:
        self._not_before = max(self._not_before, until)

    def shrink(self, events: Sequence[WireEvent]) -> None:
        """Keep requests to the size of the larger half of one that was too large."""
        half = (len(events) + 1) // 2
        sizes = [len(event.body) + 1 for event in events]
        self._max_events = min(self._max_events, half)
        self._max_bytes = min(
            self._max_bytes, self._overhead + max(sum(sizes[:half]), sum(sizes[half:]))
        )

    def sent(self, events: Sequence[WireEvent], at: float) -> None:
        """Count a request whose answer came at this time against its subjects."""
        if self._limits.subject_events_per_second is None:
            return
        counts: dict[str, int] = {}
        for event in events:
            counts[event.subject] = counts.get(event.subject, 0) + 1
        for subject, count in counts.items():
            self._lines.setdefault(subject, _Line()).sent.append((at, count))

    def take(self, now: float) -> list[WireEvent]:
        """The events of the next request; empty when nothing may be sent yet (`next_time`)."""
        if now < self._not_before:
            return []
        while self._paused and self._paused[0][0] <= now:
            self._ready.append(heapq.heappop(self._paused)[1])
        taken: list[WireEvent] = []
        room = self._max_bytes - self._overhead
        for _ in range(len(self._ready)):
            if len(taken) >= self._max_events or room <= 0:
                break
            subject = self._ready.popleft()
            line = self._lines[subject]
            allowed, free_at = self._allowance(line, now)
            while allowed and line.waiting and len(taken) < self._max_events:
                size = len(line.waiting[0].body) + 1
                # An event that alone is over a shrunken limit still gets a request of its own.
                if size > room and taken:
                    room = 0
                    break
                room -= size
                allowed -= 1
                taken.append(line.waiting.popleft())
            if line.waiting and not allowed:
                heapq.heappush(self._paused, (free_at, subject))
            elif line.waiting:
                self._ready.append(subject)
        self._waiting -= len(taken)
        if taken and self._limits.events_per_second is not None:
            self._not_before = now + len(taken) / self._limits.events_per_second
        return taken

    def next_time(self) -> float | None:
        """When `take` may have something; None when nothing is left that could be sent."""
        if self._ready:
            return self._not_before
        if self._paused:
            return max(self._not_before, self._paused[0][0])
        return None

    def _allowance(self, line: _Line, now: float) -> tuple[int, float]:
        """How many events the subject may send now, and when it may send the next after those."""
        limit = self._limits.subject_events_per_second
        if limit is None:
            return len(line.waiting), now
        allowed = max(0, limit - line.sent_within(now))
        oldest = line.sent[0][0] if line.sent else now
        return allowed, oldest + _SECOND

    def _forget_idle(self, now: float) -> None:
        idle = [
            name
            for name, line in self._lines.items()
            if not line.waiting and not line.sent_within(now)
        ]
        for name in idle:
            del self._lines[name]
