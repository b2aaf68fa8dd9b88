"""Run workers as the driver sees them: what they say, and how they are struck."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Said:
    """What a worker has said so far."""

    runs: list[tuple[float, str]] = field(default_factory=list)
    claims: int = 0
    removals: int = 0
    ran: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    struck: dict[str, Any] | None = None
    missed: bool = False


class Worker:
    """One process of chaos.worker."""

    def __init__(self, source: str, serial: int, variables: Mapping[str, str], log: Path) -> None:
        self.source = source
        self.said = Said()
        self._changed = threading.Condition()
        self._diary = log.with_name(f"{source}-{serial}.said")
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "chaos.worker", source, str(serial)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | dict(variables),
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def is_stopped(self) -> bool:
        """Whether a SIGSTOP holds it (state T of /proc)."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii")
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def arm(self, edge: str, *, countdown: int, delay: float, how: str) -> None:
        self._tell({"arm": {"edge": edge, "countdown": countdown, "delay": delay, "how": how}})

    def disarm(self) -> None:
        self._tell({"disarm": True})

    def ask_to_end(self) -> None:
        """End after the run it is in."""
        self._tell({"end": True})

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def finish(self, patience: float) -> None:
        """Wait for its end, or kill it; everything it said has been read afterwards."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait(20)
        self._reader.join(20)

    def wait_until_ready(self, patience: float = 30) -> bool:
        """Wait for its first run."""
        return self._wait(lambda: bool(self.said.runs), patience)

    def wait_for_claim(self, patience: float) -> bool:
        """Wait for a claim that is made from now on."""
        seen = self.said.claims
        return self._wait(lambda: self.said.claims > seen, patience)

    def wait_for_strike(self, patience: float) -> bool:
        """Wait until the armed strike came: the process is dead or stopped, or the warehouse is."""
        return self._wait(lambda: self.said.struck is not None, patience)

    def run_at(self, moment: float) -> str | None:
        """The run it was in at that time."""
        begun = [run_id for at, run_id in self.said.runs if at <= moment]
        return begun[-1] if begun else None

    def forget_strike(self) -> None:
        self.said.struck = None

    def _wait(self, holds: Any, patience: float) -> bool:
        ends = time.monotonic() + patience
        with self._changed:
            while not holds():
                if not self.is_alive or not self._changed.wait(min(0.2, ends - time.monotonic())):
                    if time.monotonic() >= ends:
                        return bool(holds())
                    if not self.is_alive:
                        break
        if not self.is_alive:
            self._reader.join(5)
        return bool(holds())

    def _tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # dead: whoever waits for it notices

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive:
            self._process.send_signal(number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # For whoever looks into a run that failed.
            with self._diary.open("ab") as diary:
                diary.write(line)
            said = json.loads(line)
            with self._changed:
                self._take(said)
                self._changed.notify_all()

    def _take(self, said: dict[str, Any]) -> None:
        match said["what"]:
            case "run":
                self.said.runs.append((said["t"], said["run_id"]))
            case "claim":
                self.said.claims += 1
            case "removal":
                self.said.removals += 1
            case "ran":
                self.said.ran.append((said["t"], said))
            case "failed":
                self.said.failed.append(said)
            case "edge":
                self.said.struck = said
            case "missed":
                self.said.missed = True
