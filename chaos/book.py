"""What was emitted, and how often each event was delivered to each sink."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from chaos.events import Event, Fate

Batch = tuple[Event, ...]


@dataclass
class Book:
    """Filled by the emitters, one thread a sink; read at the end."""

    events: dict[str, Event] = field(default_factory=dict)
    first_sink: dict[str, str] = field(default_factory=dict)
    deliveries: dict[str, Counter[str]] = field(default_factory=dict)
    _batches: dict[str, list[Batch]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, sink: str, batch: Sequence[Event], *, again: bool = False) -> None:
        """A sink has acknowledged `batch`; `again`: it had these events before."""
        with self._lock:
            delivered = self.deliveries.setdefault(sink, Counter())
            delivered.update(event.event_id for event in batch)
            if again:
                return
            self._batches.setdefault(sink, []).append(tuple(batch))
            for event in batch:
                self.events.setdefault(event.event_id, event)
                self.first_sink.setdefault(event.event_id, sink)

    def old_batch(self, sink: str, rng: Random) -> Batch | None:
        """A batch the sink had before, from any time of the run."""
        with self._lock:
            batches = self._batches.get(sink, [])
            return rng.choice(batches) if batches else None

    def count(self, sink: str) -> int:
        """Events whose first delivery was to this sink."""
        with self._lock:
            return sum(len(batch) for batch in self._batches.get(sink, []))

    def delivered(self) -> Counter[str]:
        """Deliveries of each event to all sinks."""
        total: Counter[str] = Counter()
        for counted in self.deliveries.values():
            total.update(counted)
        return total

    def by_fate(self, deliveries: Mapping[str, int]) -> Counter[Fate]:
        """Deliveries by the fate of their events."""
        total: Counter[Fate] = Counter()
        for event_id, times in deliveries.items():
            total[self.events[event_id].fate] += times
        return total
