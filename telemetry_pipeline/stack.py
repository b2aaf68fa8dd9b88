"""The processes of a local stack: started in order, watched, and ended in reverse."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import httpx

from telemetry_pipeline.dbt_runtime import dbt_environment
from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.identity.keys import create_missing_keys
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse import embedded
from telemetry_pipeline.warehouse.client import connect, find_address, is_external
from telemetry_pipeline.warehouse.migrate import migrate


class StackError(TelemetryError):
    """A part of the stack did not start, or ended by itself."""

    exit_code = 5


@dataclass
class _Part:
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop_signal: signal.Signals
    patience: float


@dataclass
class Stack:
    """Child processes, each in a session of its own so that its whole family can be ended."""

    project: Project
    _parts: list[_Part] = field(default_factory=list)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        patience: float = 8,
    ) -> None:
        """Start one part; its output goes to .data/logs/<name>.log."""
        log = self.project.data_dir / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.project.root,
                env=os.environ | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell that starts this command in the background leaves SIGINT ignored.
                preexec_fn=_restore_signals,
            )
        self._parts.append(_Part(name, process, log, stop_signal, patience))

    def wait_for(self, what: str, is_ready: Callable[[], bool], timeout: float) -> None:
        """Wait until `is_ready`; raises StackError when a part ends or the time is up."""
        deadline = time.monotonic() + timeout
        while not is_ready():
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"{what} was not ready within {timeout:.0f} s{self._log_hint()}")
            time.sleep(0.1)

    def check(self) -> None:
        """Raise StackError when a part has ended by itself."""
        for part in self._parts:
            code = part.process.poll()
            if code is not None:
                raise StackError(
                    f"{part.name} ended (exit code {code}): {_last_line(part.log)} (see {part.log})"
                )

    def stop(self) -> None:
        """End every part, the last started first, and everything it started."""
        while self._parts:
            part = self._parts.pop()
            _signal_family(part.process, part.stop_signal, whole=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                part.process.wait(part.patience)
            _signal_family(part.process, signal.SIGKILL, whole=True)
            part.process.wait()

    def _log_hint(self) -> str:
        return f"; see {self._parts[-1].log}" if self._parts else ""


def prepare_data_dir(project: Project) -> None:
    """Make .data/ and prove that it can be written to; raises StackError with one line."""
    try:
        project.data_dir.mkdir(parents=True, exist_ok=True)
        probe = project.data_dir / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StackError(f"{project.data_dir} cannot be written to: {error.strerror}") from None
    project.sink_dir.mkdir(exist_ok=True)


def require_free_port(port: int, option: str) -> None:
    """Raise StackError when something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StackError(
                    f"port {port}: {error.strerror}; choose another with {option}"
                ) from None
            raise StackError(f"port {port} is in use; choose another with {option}") from None


def start_warehouse(stack: Stack) -> str:
    """Start the embedded warehouse (unless one runs or CLICKHOUSE_URL names a server) and migrate.

    Returns a line that says which warehouse it is.
    """
    project = stack.project
    create_missing_keys(project.keys_dir)
    if is_external():
        shown = f"{find_address(project).shown} (CLICKHOUSE_URL)"
    elif (running := embedded.read_endpoint(project.warehouse_dir)) is not None:
        shown = f"embedded, already running as process {running.pid}"
    else:
        stack.start(
            "warehouse",
            [
                *(sys.executable, "-m", "telemetry_pipeline.warehouse.embedded"),
                *("--data-dir", str(project.warehouse_dir), "--port", "0"),
            ],
        )
        stack.wait_for(
            "the embedded warehouse",
            lambda: embedded.read_endpoint(project.warehouse_dir) is not None,
            timeout=60,
        )
        shown = f"embedded, {find_address(project).shown}"
    with contextlib.closing(connect(project)) as client:
        migrate(client)
    return shown


def _create_dagster_storage() -> None:
    """Make Dagster's databases before its processes do: two that make them at once break them
    ("alembic_version has more than one head"), and nothing loads after that."""
    from dagster import DagsterInstance

    DagsterInstance.get().dispose()


def start_dagster(stack: Stack, port: int) -> None:
    """Start Dagster's UI, daemon and code server, and wait until the UI answers."""
    _create_dagster_storage()
    stack.start(
        "dagster",
        [executable("dagster"), "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)],
        # SIGINT is the signal that ends `dagster dev` in seconds; SIGTERM takes it long.
        stop_signal=signal.SIGINT,
        patience=15,
    )
    stack.wait_for("Dagster", lambda: answers(f"http://127.0.0.1:{port}/server_info"), 120)


def start_dagster_daemon(stack: Stack) -> None:
    """Start Dagster's daemon and code server without the UI."""
    _create_dagster_storage()
    stack.start(
        "dagster",
        [executable("dagster-daemon"), "run", "-w", "workspace.yaml"],
        stop_signal=signal.SIGINT,
        patience=15,
    )


def answers(url: str) -> bool:
    """Whether a local server answers 200."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def dagster_environment(project: Project) -> dict[str, str]:
    """What Dagster's processes need: its home is the root, its state is under .data/."""
    for folder in ("storage", "logs"):
        (project.dagster_home / folder).mkdir(parents=True, exist_ok=True)
    return {
        "TELEMETRY_ROOT": str(project.root),
        "TELEMETRY_DATA_DIR": str(project.data_dir),
        "DAGSTER_HOME": str(project.root),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "TELEMETRY_DAGSTER_STORAGE": str(project.dagster_home / "storage"),
        "TELEMETRY_DAGSTER_LOGS": str(project.dagster_home / "logs"),
    }


def environment_of(project: Project) -> dict[str, str]:
    """Everything `telemetry env` exports: for `dagster dev` and `dbt` typed by hand."""
    address = None
    if is_external() or embedded.read_endpoint(project.warehouse_dir) is not None:
        address = find_address(project)
    return dagster_environment(project) | dbt_environment(project, address)


def executable(name: str) -> str:
    """A console script of this environment, whatever PATH says."""
    return str(Path(sys.executable).parent / name)


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process like Ctrl-C, so that the stack is ended too."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)


def _restore_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _signal_family(process: subprocess.Popen[bytes], sign: signal.Signals, *, whole: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if whole:
            os.killpg(process.pid, sign)
        else:
            process.send_signal(sign)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"
