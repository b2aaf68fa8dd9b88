"""Which strike comes next: every named edge in turn, the rest at random. Pure and seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from chaos.edges import TEAR, Edge, edges_for

Target = Literal["worker", "warehouse", "broker"]
How = Literal["kill", "stop"]


@dataclass(frozen=True)
class Strike:
    """One disturbance. Without an edge it comes `delay` seconds after some claim.

    With one, at its `countdown`th passing; `delay` is then how far into the call, where the edge
    is a call that is under way.
    """

    target: Target
    how: How
    source: str
    delay: float
    edge: Edge | None = None
    countdown: int = 1

    def __str__(self) -> str:
        where = f" {self.edge.name}" if self.edge else ""
        return f"{self.source}: {self.how} the {self.target}{where}"


class Plan:
    """Deals strikes until `kills` are done; every edge is met once by each how if there is room."""

    def __init__(
        self, seed: int, kills: int, sources: Sequence[str], with_service: Sequence[str]
    ) -> None:
        self._rng = Random(f"plan/{seed}")
        self._kills = kills
        self._sources = list(sources)
        self._with_service = list(with_service)
        self._edges: list[tuple[Edge, How]] = [
            (edge, how) for edge in edges_for(len(sources)) for how in HOWS
        ]
        self._edges.append((TEAR, "kill"))
        self._rng.shuffle(self._edges)
        self._has_room = self._left_to_meet() < kills / 2

    def next(self, done: int) -> Strike | None:
        """The next strike after `done` kills, or None."""
        if done >= self._kills:
            return None
        share = self._left_to_meet() / (self._kills - done)
        if self._edges and self._rng.random() < (share if self._has_room else min(share, 0.6)):
            return self._at_edge(*self._edges.pop())
        return self._at_random()

    def try_again(self, strike: Strike) -> None:
        """Its edge was not met: deal it again, later."""
        if strike.edge is not None:
            self._edges.insert(0, (strike.edge, strike.how))

    def _left_to_meet(self) -> int:
        """Kills, with those that make something to take over."""
        return sum(2 if edge.needs else 1 for edge, _ in self._edges)

    def _at_edge(self, edge: Edge, how: How) -> Strike:
        return Strike(
            "warehouse" if edge is TEAR else "worker",
            how,
            self._rng.choice(self._sources),
            self._rng.uniform(0, 0.02 if edge.needs else 0.06),
            edge,
            1 if edge.needs else self._rng.randint(1, 2),
        )

    def _at_random(self) -> Strike:
        source = self._rng.choice(self._sources)
        delay = self._rng.uniform(0, 0.3)
        kind = self._rng.choices(("kill", "stop", "warehouse", "broker"), (50, 10, 20, 20))[0]
        if kind == "broker" and self._with_service:
            return Strike("broker", "kill", self._rng.choice(self._with_service), delay)
        if kind == "warehouse":
            return Strike("warehouse", "kill", source, delay)
        return Strike("worker", "stop" if kind == "stop" else "kill", source, delay)


HOWS: tuple[How, How] = ("kill", "stop")
