"""One chaos run: services, emitters and workers up; strikes; settle; compare; control."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from chaos import limits
from chaos.accounting import Stored, Struck, Verdict, count_mid_slice, is_torn, judge, read_stored
from chaos.book import Book
from chaos.control import check_control
from chaos.edges import BY_NAME, TEAR, Needs, edges_for
from chaos.emitter import Emitter
from chaos.events import EventStream
from chaos.plan import HOWS, Plan, Strike
from chaos.policy import Policy
from chaos.sinks.base import Sink
from chaos.warehouse import Warehouse
from chaos.workers import Worker
from telemetry_pipeline.paths import Project

#: What a source gets before a strike: a few slices.
BURST_EVENTS = 4_000
#: A paused worker wakes up this long after its claim may have been taken over.
LATE_SECONDS = (1.5, 4.0)
EDGE_PATIENCE = 30.0
#: By what an edge needs. What is left open is taken over by the first run after the grace.
PATIENCE: dict[Needs, float] = {
    "": EDGE_PATIENCE,
    "open": limits.GRACE_SECONDS + 12.0,
    "torn": limits.GRACE_SECONDS + 12.0,
    "raced": 8.0,
}
SETTLE_PATIENCE = 150.0
#: Tries to tear a batch: a busy machine may be too slow to hit the moment.
TEARS = 4
#: Tries to let two workers land the same events at once, and this one give up its copies.
RACES = 6


class NotSettled(Exception):
    """Something that must work did not; the text says what."""


@dataclass(frozen=True)
class Kill:
    """A strike that happened, and the workers that felt it."""

    moment: float
    target: str
    how: str
    edge: str
    felt_by: tuple[Worker, ...]

    def struck(self) -> Struck:
        runs = (worker.run_at(self.moment) for worker in self.felt_by)
        return Struck(self.moment, tuple(run for run in runs if run is not None))


@dataclass(frozen=True)
class Outcome:
    """What the last line of output says, and what stands above it."""

    figures: dict[str, Any]
    verdict: Verdict
    unnoticed: list[str]
    edges_missed: list[str]


@dataclass
class Run:
    """State of a run; `play` does it all."""

    project: Project
    sinks: Sequence[Sink]
    kills_wanted: int
    seed: int
    events_wanted: int
    variables: Mapping[str, str]
    warehouse: Warehouse = field(init=False)
    policy: Policy = field(init=False)
    book: Book = field(default_factory=Book)
    kills: list[Kill] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.warehouse = Warehouse(self.project)
        self.policy = Policy(self.project)
        self._rng = Random(f"run/{self.seed}")
        now_ms = int(time.time() * 1000)
        self._emitters = {
            sink.name: Emitter(
                sink, EventStream(self.seed, sink.name, now_ms), self.book, self.seed
            )
            for sink in self.sinks
        }
        self._workers: dict[str, Worker] = {}
        self._all_workers: list[Worker] = []
        self._paused: list[tuple[float, Worker]] = []
        self._leaving: list[Worker] = []
        self._met: Counter[tuple[str, str]] = Counter()
        self._missed: Counter[str] = Counter()
        self._began = time.monotonic()

    # -- the whole of it ----------------------------------------------------------------------

    def play(self) -> Outcome:
        with self._everything_up():
            plan = Plan(
                self.seed,
                self.kills_wanted,
                [sink.name for sink in self.sinks],
                [sink.name for sink in self.sinks if sink.has_service],
            )
            while (strike := plan.next(len(self.kills))) is not None:
                self._look_after()
                if not self._do(strike):
                    self._missed[str(strike)] += 1
                    plan.try_again(strike)
                self._meddle()
            settled = self._settle()
            return self._judge(settled)

    @contextmanager
    def _everything_up(self) -> Iterator[None]:
        with ExitStack() as down:
            down.callback(self._end_workers)
            down.callback(self.warehouse.kill)
            for sink in self.sinks:
                down.callback(sink.close)
                sink.start()
            self.warehouse.start()
            self.warehouse.make_tables()
            emitters = list(self._emitters.values())
            for emitter in emitters:
                emitter.share_with([other for other in emitters if other is not emitter])
                emitter.start()
            for sink in self.sinks:
                self._hire(sink.name)
            self._say("up: " + ", ".join(self._emitters))
            yield

    # -- strikes ------------------------------------------------------------------------------

    def _do(self, strike: Strike) -> bool:
        """Strike; False when the edge was not met in time."""
        if strike.edge is TEAR:
            return any(self._tear(strike.source) for _ in range(TEARS))
        if strike.edge is not None and strike.edge.needs == "torn":
            return any(self._tear(strike.source) for _ in range(TEARS)) and self._strike_at_edge(
                strike
            )
        if strike.edge is not None and strike.edge.needs == "open":
            first = replace(strike, how="kill", edge=BY_NAME["after staging"])
            return self._strike_at_edge(first) and self._strike_at_edge(strike)
        if strike.edge is not None and strike.edge.needs == "raced":
            return any(self._strike_at_edge(strike) for _ in range(RACES))
        if strike.edge is not None:
            return self._strike_at_edge(strike)
        return self._strike_at_random(strike)

    def _strike_at_edge(self, strike: Strike) -> bool:
        assert strike.edge is not None
        worker = self._workers[strike.source]
        worker.arm(strike.edge.name, countdown=strike.countdown, delay=strike.delay, how=strike.how)
        patience = PATIENCE[strike.edge.needs]
        if strike.edge.needs == "raced":
            self._race(strike.source)
        else:
            self._burst(strike.source)
        if not worker.wait_for_strike(patience):
            worker.disarm()
            self._say(f"not met: {strike}")
            return False
        assert worker.said.struck is not None
        self._met[strike.edge.name, strike.how] += 1
        self._note(worker.said.struck["t"], strike, (worker,))
        self._replace(strike)
        return True

    def _strike_at_random(self, strike: Strike) -> bool:
        worker = self._workers[strike.source]
        for source in self._emitters if strike.target == "warehouse" else (strike.source,):
            self._burst(source)
        worker.wait_for_claim(EDGE_PATIENCE)
        time.sleep(strike.delay)
        moment = time.time()
        if strike.target == "warehouse":
            self.warehouse.kill()
            self._note(moment, strike, tuple(self._workers.values()))
            self.warehouse.start()
        elif strike.target == "broker":
            sink = self._sink(strike.source)
            sink.kill()
            self._note(moment, strike, (worker,))
            time.sleep(self._rng.uniform(0, 1.5))
            sink.restart()
        else:
            worker.kill() if strike.how == "kill" else worker.pause()
            self._note(moment, strike, (worker,))
            self._replace(strike)
        return True

    def _tear(self, source: str) -> bool:
        """Let the warehouse die between the targets of an insert; whether that tore a batch.

        The kill can come too late, when all targets are filled.
        """
        worker = self._workers[source]
        worker.forget_strike()
        worker.arm(TEAR.name, countdown=1, delay=0.0, how="warehouse")
        self._burst(source)
        if not worker.wait_for_strike(EDGE_PATIENCE):
            worker.disarm()
            self._say(f"not met: {source}: {TEAR.name}")
            return False
        assert worker.said.struck is not None
        strike = Strike("warehouse", "kill", source, 0.0, TEAR)
        self.warehouse.kill()
        self._met[TEAR.name, "kill"] += 1
        self._note(worker.said.struck["t"], strike, tuple(self._workers.values()))
        worker.forget_strike()
        self.warehouse.start()
        with closing(self.warehouse.client()) as client:
            return is_torn(client, source)

    def _note(self, moment: float, strike: Strike, felt_by: tuple[Worker, ...]) -> None:
        edge = strike.edge.name if strike.edge else "at random"
        self.kills.append(Kill(moment, strike.target, strike.how, edge, felt_by))
        self._say(str(strike))

    def _replace(self, strike: Strike) -> None:
        """A dead or paused worker's source gets another one at once."""
        worker = self._workers[strike.source]
        if strike.how == "stop":
            late = self._rng.uniform(*LATE_SECONDS)
            self._paused.append((time.monotonic() + limits.GRACE_SECONDS + late, worker))
        else:
            worker.finish(20)
        self._hire(strike.source)

    # -- between strikes ----------------------------------------------------------------------

    def _look_after(self) -> None:
        """Wake who slept long enough; replace what ended by itself."""
        now = time.monotonic()
        for wake_at, worker in [entry for entry in self._paused if entry[0] <= now]:
            self._paused.remove((wake_at, worker))
            worker.wake()
            worker.ask_to_end()
            self._leaving.append(worker)
        if not self.warehouse.is_alive:
            self._missed["the warehouse ended by itself"] += 1
            self.warehouse.start()
        for source, worker in list(self._workers.items()):
            if not worker.is_alive:
                self._missed[f"{source}: a worker ended by itself"] += 1
                self._hire(source)
        for emitter in self._emitters.values():
            if emitter.failure is not None:
                raise NotSettled(f"{emitter.name}: {emitter.failure!r}") from emitter.failure

    def _meddle(self) -> None:
        """What an operator does meanwhile."""
        if self._rng.random() < 0.25:
            self._say(self.policy.change_catalogue())
        if self._rng.random() < 0.25:
            self._say(self.policy.rotate_key_id())
        if self._rng.random() < 0.4:
            source = self._rng.choice(list(self._emitters))
            self._emitters[source].order_redelivery(self._rng.randint(2, 8))

    def _hire(self, source: str) -> None:
        worker = Worker(
            source,
            len(self._all_workers) + 1,
            self.variables,
            self.project.data_dir / "workers.log",
        )
        self._all_workers.append(worker)
        self._workers[source] = worker
        if not worker.wait_until_ready():
            log = (self.project.data_dir / "workers.log").read_text(errors="replace")
            raise NotSettled(f"a worker of {source} did not start:\n{log[-3000:]}")

    def _burst(self, source: str) -> None:
        self._emitters[source].burst(BURST_EVENTS)

    def _race(self, source: str) -> None:
        """The same events to this source and to another, at the same time."""
        others = [emitter for name, emitter in self._emitters.items() if name != source]
        self._emitters[source].race(BURST_EVENTS, self._rng.choice(others))

    def _sink(self, name: str) -> Sink:
        return next(sink for sink in self.sinks if sink.name == name)

    # -- the end ------------------------------------------------------------------------------

    def _settle(self) -> float:
        """Let everything come to rest; returns how many seconds after the last strike it had."""
        last_kill = time.monotonic()
        self._emit_the_rest()
        while self._paused:
            self._look_after()
            time.sleep(0.2)
        for emitter in self._emitters.values():
            emitter.order_redelivery(10)  # once more, long after
            emitter.finish()
        for emitter in self._emitters.values():
            emitter.join(SETTLE_PATIENCE)
            if emitter.is_alive():
                raise NotSettled(f"{emitter.name} could not deliver all it had to")
        self._look_after()
        for worker in self._leaving:
            worker.finish(limits.GRACE_SECONDS + 20)
        quiet_since = time.time()
        ends = time.monotonic() + SETTLE_PATIENCE
        while not self._is_settled(quiet_since):
            if time.monotonic() > ends:
                self._say("it does not settle: what is missing is counted below")
                break
            self._look_after()
            time.sleep(0.3)
        return time.monotonic() - last_kill

    def _emit_the_rest(self) -> None:
        missing = self.events_wanted - len(self.book.events)
        for emitter in self._emitters.values():
            if missing > 0:
                emitter.burst(missing // len(self._emitters) + 1)

    def _is_settled(self, quiet_since: float) -> bool:
        """Every source's worker has looked since, found nothing, and no claim is open."""
        for worker in self._workers.values():
            ran = worker.said.ran[-1] if worker.said.ran else None
            begun = [at for at, _ in worker.said.runs if ran is not None and at <= ran[0]]
            if ran is None or not begun or begun[-1] < quiet_since:
                return False
            if ran[1]["waiting"] or ran[1]["slices"]:
                return False
        rows = self.warehouse.rows("SELECT count() FROM ops.ingest_ledger WHERE state = 'open'")
        return bool(rows[0][0] == 0)

    def _judge(self, settled_seconds: float) -> Outcome:
        for worker in self._workers.values():
            worker.ask_to_end()
        for worker in self._workers.values():
            worker.finish(30)
        deliveries = self._deliveries()
        with closing(self.warehouse.client()) as client:
            stored = read_stored(client, self.project)
            mid_slice = count_mid_slice(client, [kill.struck() for kill in self.kills])
            verdict = judge(self.book, deliveries, stored)
            control, unnoticed = "not judged", list[str]()
            # Damage on top of damage could cancel out; and such a run has failed anyhow.
            if verdict.is_clean:
                self._say("compared; now the control: damage that must be noticed")
                unnoticed = check_control(
                    client,
                    verdict,
                    lambda: judge(self.book, deliveries, read_stored(client, self.project)),
                )
                control = "missed" if unnoticed else "noticed"
        figures = {
            "kills": len(self.kills),
            "kills_mid_slice": mid_slice,
            "emitted": len(self.book.events),
            "lost": verdict.lost,
            "duplicated": verdict.duplicated,
            "unaccounted": verdict.unaccounted,
            "settled_s": round(settled_seconds, 1),
            "by_source": self._by_source(deliveries, stored),
            "by_target": dict(Counter(f"{kill.how} {kill.target}" for kill in self.kills)),
            "torn_batches_removed": sum(worker.said.removals for worker in self._all_workers),
            "catalogue_changes": self.policy.catalogue_changes,
            "key_rotations": self.policy.key_rotations,
            "control": control,
        }
        return Outcome(figures, verdict, unnoticed, self._edges_missed())

    def _deliveries(self) -> dict[str, Counter[str]]:
        """By sink and event id: from the sink itself, where what it promised is not all it has."""
        read = {sink.name: sink.deliveries() for sink in self.sinks}
        return {
            name: self.book.deliveries.get(name, Counter()) if counted is None else counted
            for name, counted in read.items()
        }

    def _by_source(
        self, deliveries: Mapping[str, Counter[str]], stored: Stored
    ) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "emitted": self.book.count(name),
                "delivered": sum(counted.values()),
                **(vars(stored.totals[name]) if name in stored.totals else {}),
            }
            for name, counted in deliveries.items()
        }

    def _edges_missed(self) -> list[str]:
        wanted = [(edge.name, how) for edge in edges_for(len(self.sinks)) for how in HOWS]
        wanted.append((TEAR.name, "kill"))
        return [f"{name} ({how})" for name, how in wanted if not self._met[name, how]]

    def failures(self) -> Counter[str]:
        """Why runs failed, and what did not go as planned, with counts."""
        why = Counter(
            f"{said['kind']}: {said['text'].splitlines()[0][:160] if said['text'] else ''}"
            for worker in self._all_workers
            for said in worker.said.failed
        )
        return why + self._missed

    def _end_workers(self) -> None:
        for worker in self._all_workers:
            if worker.is_alive:
                worker.kill()
                worker.finish(20)

    def _say(self, text: str) -> None:
        elapsed = time.monotonic() - self._began
        emitted = len(self.book.events)
        print(
            f"[{elapsed:4.0f} s] {len(self.kills):3}/{self.kills_wanted} kills, "
            f"{emitted:,} events: {text}",
            flush=True,
        )
