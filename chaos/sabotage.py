"""Breaks exactly-once on purpose: what chaos must notice, or its zeros mean nothing."""

from __future__ import annotations

from typing import Any

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.ingest.ledger import Ledger, OpenClaim
from telemetry_pipeline.ingest.loader import Loader


def _result_before_insert() -> None:
    """The result is written first: what dies before the insert is lost."""
    original = Loader._land

    def land(self: Loader, claim: Any, *more: Any, **named: Any) -> Any:
        ledger = Ledger(self.client, self.source.name)
        ledger.finish(claim.slice, claim.attempt, ledger.landed(claim.slice.batch_id))
        return original(self, claim, *more, **named)

    Loader._land = land  # type: ignore[method-assign]


def _no_removal() -> None:
    """What an earlier attempt left stays beside what the next one lands."""
    Ledger.remove = lambda self, *args, **named: None  # type: ignore[method-assign]


def _no_grace() -> None:
    """Claims are taken over at once, while their owners are at work or only paused."""
    original = Ledger.open_claims

    def open_claims(self: Ledger) -> list[OpenClaim]:
        return [OpenClaim(**(vars(left) | {"may_be_taken_over": True})) for left in original(self)]

    Ledger.open_claims = open_claims  # type: ignore[method-assign]


def _no_recovery() -> None:
    """What a dead worker left stays open."""
    Ledger.open_claims = lambda self: []  # type: ignore[method-assign]


WAYS = {
    "result_before_insert": _result_before_insert,
    "no_removal": _no_removal,
    "no_grace": _no_grace,
    "no_recovery": _no_recovery,
}


def sabotage(way: str) -> None:
    """Break ingest in this process in the way named, or not at all ('')."""
    if not way:
        return
    if way not in WAYS:
        raise TelemetryError(f"BREAK={way} is not known; there are: {', '.join(WAYS)}")
    WAYS[way]()
