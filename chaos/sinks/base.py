"""What the driver asks of every sink."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

from chaos.events import Event


class Sink(Protocol):
    """A sink and the service behind it, which may be killed and started again at any time.

    `write`, `copy_back` and `close` are called by one thread; `kill` and `restart` by another.
    """

    #: The source's name in telemetry.yaml.
    name: str
    #: Whether there is a service to kill.
    has_service: bool

    @property
    def settings(self) -> dict[str, Any]:
        """The source's part of telemetry.yaml."""

    @property
    def variables(self) -> dict[str, str]:
        """What workers need in their environment."""

    def start(self) -> None:
        """Start the service, if there is one."""

    def write(self, batch: Sequence[Event]) -> None:
        """Deliver the batch; returns once the sink has promised to keep it, however long."""

    def copy_back(self, rng: Random) -> None:
        """Give old messages back in a way that must not be read again, where there is one."""

    def kill(self) -> None:
        """SIGKILL the service."""

    def restart(self) -> None:
        """Start the service again on what it left."""

    def deliveries(self) -> Counter[str] | None:
        """Deliveries by event id, read from the sink by other code than ingest; None where the
        emitter's own count is exact. A sink that promised nothing may still hold a message."""

    def close(self) -> None:
        """Let go of connections and end the service."""
