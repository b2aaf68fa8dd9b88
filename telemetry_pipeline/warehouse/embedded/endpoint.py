"""Where a running embedded warehouse listens, and the lock that says it still runs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from telemetry_pipeline.warehouse.embedded.errors import EmbeddedWarehouseError

_ENDPOINT_FILE = "endpoint.json"
_LOCK_FILE = "server.lock"


@dataclass(frozen=True)
class Endpoint:
    """Address and process id of a running server."""

    host: str
    port: int
    pid: int

    @property
    def url(self) -> str:
        """`http://host:port`, with an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def read_endpoint(data_dir: Path) -> Endpoint | None:
    """The endpoint of the server that owns `data_dir`, or None if none runs.

    A file left behind by a killed server is recognised: nobody holds the lock any more.
    """
    endpoint = _stored_endpoint(data_dir)
    if endpoint is None or not _is_locked(data_dir):
        return None
    return endpoint


def write_endpoint(data_dir: Path, endpoint: Endpoint) -> None:
    """Publish the endpoint in one step: a reader sees the old file or the whole new one."""
    target = data_dir / _ENDPOINT_FILE
    draft = data_dir / f"{_ENDPOINT_FILE}.{os.getpid()}.new"
    draft.write_text(json.dumps(asdict(endpoint)) + "\n", encoding="utf-8")
    os.replace(draft, target)


def remove_endpoint(data_dir: Path) -> None:
    """Take the endpoint back; no error if it is not there."""
    (data_dir / _ENDPOINT_FILE).unlink(missing_ok=True)


class OwnerLock:
    """The right to be the one server of a data folder; the kernel frees it when the owner dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, data_dir: Path, *, patience_seconds: float = 0.5) -> OwnerLock:
        """Become the owner of `data_dir`, or raise `EmbeddedWarehouseError` naming the owner.

        The patience covers a reader that tests the lock at this very moment.
        """
        descriptor = os.open(data_dir / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return cls(descriptor)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise EmbeddedWarehouseError(_held_by(data_dir)) from None
                time.sleep(0.02)

    def release(self) -> None:
        """Give the folder back."""
        os.close(self._descriptor)


def _held_by(data_dir: Path) -> str:
    endpoint = _stored_endpoint(data_dir)
    if endpoint is None:
        return f"{data_dir} is in use: another warehouse server is starting on it"
    return (
        f"{data_dir} is in use by the warehouse server with pid {endpoint.pid} on {endpoint.url}; "
        "use that one, or stop it first"
    )


def _stored_endpoint(data_dir: Path) -> Endpoint | None:
    try:
        stored = json.loads((data_dir / _ENDPOINT_FILE).read_text(encoding="utf-8"))
        return Endpoint(str(stored["host"]), int(stored["port"]), int(stored["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_locked(data_dir: Path) -> bool:
    try:
        descriptor = os.open(data_dir / _LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
