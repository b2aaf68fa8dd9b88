"""The named edges of ARCHITECTURE.md's state table, and where a worker passes each of them."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from telemetry_pipeline.errors import TelemetryError

When = Literal["before", "during", "after"]
Needs = Literal["", "open", "torn", "raced"]
#: (positional arguments without self, keyword arguments, result or None) -> does it count?
Applies = Callable[[tuple[Any, ...], Mapping[str, Any], Any], bool]

LEDGER = "telemetry_pipeline.ingest.ledger:Ledger"
LOADER = "telemetry_pipeline.ingest.loader:Loader"


def _always(args: tuple[Any, ...], named: Mapping[str, Any], result: Any) -> bool:
    return True


def _owned(args: tuple[Any, ...], named: Mapping[str, Any], result: Any) -> bool:
    return result is not None


def _some(args: tuple[Any, ...], named: Mapping[str, Any], result: Any) -> bool:
    return bool(result)


def _taken_over(args: tuple[Any, ...], named: Mapping[str, Any], result: Any) -> bool:
    attempt = named["attempt"] if "attempt" in named else args[1]
    return result is not None and bool(attempt > 1)


def _kind(wanted: str) -> Applies:
    def applies(args: tuple[Any, ...], named: Mapping[str, Any], result: Any) -> bool:
        return bool((named["kind"] if "kind" in named else args[2]) == wanted)

    return applies


@dataclass(frozen=True)
class Edge:
    """A place at which a worker can be struck: before, during or after one method of ingest.

    `needs`: passed only by a run that takes over a claim that is open, or a batch that is torn:
    one of which some targets hold rows and others do not; or when two sources land copies of the
    same events at the same moment.
    """

    name: str
    owner: str
    method: str
    when: When
    applies: Applies = _always
    needs: Needs = ""


#: The one place that knows ingest's method names; `find_methods` refuses one that is missing.
EDGES = (
    Edge("before the claim", LEDGER, "claim", "before"),
    Edge("after the claim", LEDGER, "claim", "after", _owned),
    Edge("after the claim of a later attempt", LEDGER, "claim", "after", _taken_over, "open"),
    Edge("during staging", LOADER, "_staged", "during"),
    Edge("after staging", LOADER, "_land", "before"),
    Edge("inside the insert", LOADER, "_land", "during"),
    Edge("after the insert", LOADER, "_land", "after"),
    Edge("before the settled touch", LEDGER, "touch", "before", _kind("settled")),
    Edge("before the result", LEDGER, "finish", "before"),
    Edge("after the result", LEDGER, "finish", "after"),
    Edge("before the deleting touch", LEDGER, "touch", "before", _kind("deleting"), "torn"),
    Edge("after the deleting touch", LEDGER, "touch", "after", _kind("deleting"), "torn"),
    Edge("during the removal", LEDGER, "remove", "during", _always, "torn"),
    Edge("after the removal", LEDGER, "remove", "after", _always, "torn"),
    Edge("before copies are given up", LEDGER, "touch", "before", _kind("deleting"), "raced"),
    Edge("after copies were given up", LEDGER, "yield_copies", "after", _some, "raced"),
)
#: Not a place but a moment: the warehouse dies when the first target of an insert has its rows
#: and the others, most often, have not.
TEAR = Edge("between the targets of the insert", LOADER, "_land", "during")


def edges_for(sources: int) -> tuple[Edge, ...]:
    """The edges that can be met with so many sources: it takes two of them to race."""
    return tuple(edge for edge in EDGES if edge.needs != "raced" or sources > 1)


BY_NAME = {edge.name: edge for edge in (*EDGES, TEAR)}


def find_methods() -> None:
    """Raise TelemetryError when ingest no longer has a method that an edge names."""
    for edge in BY_NAME.values():
        owner = load(edge.owner)
        if not callable(getattr(owner, edge.method, None)):
            raise TelemetryError(
                f"chaos: edge '{edge.name}' hooks {edge.owner}.{edge.method}, which is not there; "
                "mend chaos/edges.py"
            )


def load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass
class Trap:
    """An armed edge: `strike` is called at the `countdown`th passing.

    For an edge that is hit *during* a call, the strike comes `delay` seconds after its start, if
    the call still runs then; else the trap stays armed with half the delay.
    """

    edge: Edge
    countdown: int
    delay: float
    strike: Callable[[], None]


class Traps:
    """Wraps every hooked method once; at most one trap is armed at a time."""

    def __init__(self) -> None:
        self._armed: Trap | None = None
        self._lock = threading.Lock()
        find_methods()
        for owner, method in {(edge.owner, edge.method) for edge in BY_NAME.values()}:
            self._wrap(owner, method)

    def arm(self, trap: Trap) -> None:
        with self._lock:
            self._armed = trap

    def disarm(self) -> None:
        with self._lock:
            self._armed = None

    def _wrap(self, owner_path: str, method: str) -> None:
        owner = load(owner_path)
        original = getattr(owner, method)

        def hooked(instance: Any, *args: Any, **named: Any) -> Any:
            self._pass(owner_path, method, "before", args, named, None)
            timer = self._start_timer(owner_path, method, args, named)
            try:
                result = original(instance, *args, **named)
            except BaseException:
                _cancel(timer)
                raise
            if timer is not None and hasattr(result, "__enter__"):
                return _Entered(result, timer)
            _cancel(timer)
            self._pass(owner_path, method, "after", args, named, result)
            return result

        setattr(owner, method, hooked)

    def _matching(self, owner: str, method: str, when: When) -> Trap | None:
        with self._lock:
            trap = self._armed
        if trap is None:
            return None
        edge = trap.edge
        return trap if (edge.owner, edge.method, edge.when) == (owner, method, when) else None

    def _pass(
        self, owner: str, method: str, when: When, args: Any, named: Any, result: Any
    ) -> None:
        trap = self._matching(owner, method, when)
        if trap is None or not trap.edge.applies(args, named, result):
            return
        trap.countdown -= 1
        if trap.countdown <= 0:
            self.disarm()
            trap.strike()

    def _start_timer(
        self, owner: str, method: str, args: Any, named: Any
    ) -> threading.Timer | None:
        trap = self._matching(owner, method, "during")
        if trap is None or not trap.edge.applies(args, named, None):
            return None
        trap.countdown -= 1
        if trap.countdown > 0:
            return None
        trap.delay, delay = trap.delay / 2, trap.delay

        def strike() -> None:
            self.disarm()
            trap.strike()

        timer = threading.Timer(delay, strike)
        timer.daemon = True
        timer.start()
        return timer


@dataclass(frozen=True)
class _Entered:
    """A context manager whose work is done on entering: then the timer's time is over."""

    inner: Any
    timer: threading.Timer

    def __enter__(self) -> Any:
        try:
            return self.inner.__enter__()
        finally:
            self.timer.cancel()

    def __exit__(self, *error: Any) -> Any:
        return self.inner.__exit__(*error)


def _cancel(timer: threading.Timer | None) -> None:
    if timer is not None:
        timer.cancel()
