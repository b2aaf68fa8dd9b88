"""Writes events to one sink in a thread of its own, while everything around it is being killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from random import Random

from chaos.book import Batch, Book
from chaos.events import Event, EventStream
from chaos.sinks.base import Sink

BATCH = 50
#: Between bursts a batch comes every so many seconds.
TRICKLE_SECONDS = 0.5
#: Of a hundred batches, so many are old ones, and so many go to another sink as well.
AGAIN, SHARED = 4, 3


class Emitter(threading.Thread):
    """`burst` orders events; old batches come again and shared ones reach two sinks at once."""

    def __init__(self, sink: Sink, stream: EventStream, book: Book, seed: int) -> None:
        super().__init__(name=f"emitter-{sink.name}", daemon=True)
        self.sink = sink
        self._stream = stream
        self._book = book
        self._rng = Random(f"emitter/{seed}/{sink.name}")
        self._share: Callable[[Sequence[Event]], None] = lambda batch: None
        self._ordered = 0
        self._orders: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._ending = False
        self.failure: BaseException | None = None

    def share_with(self, others: Sequence[Emitter]) -> None:
        """Let some batches reach one of `others` at the same time."""
        if others:
            self._share = lambda batch: self._rng.choice(others).order_shared(batch)

    def burst(self, events: int) -> None:
        with self._changed:
            self._ordered += events
            self._changed.notify()

    def race(self, events: int, other: Emitter) -> None:
        """Write new events to both sinks at the same time."""

        def write() -> None:
            for _ in range(0, events, BATCH):
                batch = self._stream.take(BATCH)
                other.order_shared(batch)
                self._write(batch)

        self._order(write)

    def order_shared(self, batch: Sequence[Event]) -> None:
        """Deliver what another sink gets at this moment, too."""
        self._order(lambda: self._write(batch))

    def order_redelivery(self, batches: int) -> None:
        """Deliver old messages again: some as new messages, one as the sink would restore it."""
        self._order(lambda: self._redeliver(batches))

    def finish(self) -> None:
        """Do all that was ordered, then end."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    @property
    def is_behind(self) -> bool:
        with self._changed:
            return bool(self._ordered > 0 or self._orders)

    def run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:
            self.failure = error

    def _order(self, order: Callable[[], None]) -> None:
        with self._changed:
            self._orders.append(order)
            self._changed.notify()

    def _step(self) -> bool:
        with self._changed:
            if not self._ordered and not self._orders and not self._ending:
                self._changed.wait(TRICKLE_SECONDS)
            orders, self._orders = self._orders, []
            ordered = self._ordered
            if self._ending and not ordered and not orders:
                return False
        for order in orders:
            order()
        self._write_new()
        with self._changed:
            self._ordered = max(0, self._ordered - BATCH)
        return True

    def _write_new(self) -> None:
        batch = self._stream.take(BATCH)
        chance = self._rng.randrange(100)
        if chance < SHARED:
            self._share(batch)
        self._write(batch)
        if chance >= 100 - AGAIN:
            self._redeliver(1)

    def _write(self, batch: Sequence[Event]) -> None:
        self.sink.write(batch)
        self._book.note(self.sink.name, batch)

    def _redeliver(self, batches: int) -> None:
        for _ in range(batches):
            old: Batch | None = self._book.old_batch(self.sink.name, self._rng)
            if old is not None:
                self.sink.write(old)
                self._book.note(self.sink.name, old, again=True)
        if batches > 1:
            self.sink.copy_back(self._rng)
