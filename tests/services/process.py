"""One process of a service: started, waited for, stopped or killed, with its output in a file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fresh import REPOSITORY

SERVICES = REPOSITORY / ".cache" / "services"


def free_port() -> int:
    """A port that nothing listens on, chosen by the operating system."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass
class Service:
    """`command` can be started again after it was stopped or killed; `log` is appended to."""

    command: Sequence[str]
    log: Path
    is_ready: Callable[[], bool]
    variables: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id while it runs."""
        assert self._process is not None, f"{self.command[0]} does not run"
        return self._process.pid

    def start(self, patience: float = 60) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.log.parent,
                env=os.environ | dict(self.variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        ends = time.monotonic() + patience
        while not self.is_ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > ends:
                self.kill()
                what = "ended" if ended else "is not ready"
                raise AssertionError(f"{self.command[0]} {what}:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to end; one that does not is killed."""
        try:
            self._end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self.kill()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None
