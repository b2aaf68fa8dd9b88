"""A real embedded warehouse for the tests: a process of its own on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
from clickhouse_connect.driver.client import Client

from telemetry_pipeline.warehouse.embedded import Endpoint, User, Users, read_endpoint, read_users

START_SECONDS = 30
_started: list[subprocess.Popen[str]] = []


@dataclass
class Server:
    """A running embedded warehouse."""

    data_dir: Path
    process: subprocess.Popen[str]
    endpoint: Endpoint
    users: Users

    def http(self, user: User | None = None) -> httpx.Client:
        """A plain HTTP client with a user's credentials, the writer's by default."""
        user = user or self.users.writer
        return httpx.Client(base_url=self.endpoint.url, auth=(user.name, user.password), timeout=60)

    def client(self, user: User | None = None, **options: Any) -> Client:
        """A clickhouse-connect client."""
        user = user or self.users.writer
        return clickhouse_connect.get_client(
            host=self.endpoint.host,
            port=self.endpoint.port,
            username=user.name,
            password=user.password,
            **options,
        )

    def sql(self, statement: str, body: bytes | None = None, **parameters: str) -> str:
        """Run a statement as the writer, in `?query=` if there is a body, and return the answer."""
        with self.http() as http:
            answer = http.post(
                "/",
                params={**parameters, **({"query": statement} if body is not None else {})},
                content=statement if body is None else body,
            )
        assert answer.status_code == 200, answer.text
        return answer.text.strip()

    def resident_peak(self) -> int:
        """The most memory the process ever held, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()

    def terminate(self) -> float:
        """SIGTERM; the seconds until the process was gone."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=20)
        return time.monotonic() - started


def start_process(data_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the module entry without waiting for it."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "telemetry_pipeline.warehouse.embedded",
            "--data-dir",
            str(data_dir),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    _started.append(process)
    return process


def end_leftovers() -> None:
    """End the servers of tests that failed before they could."""
    for process in _started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def start_server(data_dir: Path, *arguments: str) -> Server:
    """Start a server and wait until it answers."""
    process = start_process(data_dir, *arguments)
    deadline = time.monotonic() + START_SECONDS
    while (endpoint := read_endpoint(data_dir)) is None or endpoint.pid != process.pid:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the server did not start: {process.communicate()}")
        time.sleep(0.02)
    return Server(data_dir, process, endpoint, read_users(data_dir))


@contextmanager
def running_server(data_dir: Path, *arguments: str) -> Iterator[Server]:
    """A server for the length of a block."""
    server = start_server(data_dir, *arguments)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        try:
            server.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()


def eventually(condition: Callable[[], bool], seconds: float = 15) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
