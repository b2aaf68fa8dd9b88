"""The server process: owns the folder, listens, and ends within seconds when told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import uvicorn

from telemetry_pipeline.warehouse.embedded.app import Warehouse, create_app
from telemetry_pipeline.warehouse.embedded.endpoint import (
    Endpoint,
    OwnerLock,
    remove_endpoint,
    write_endpoint,
)
from telemetry_pipeline.warehouse.embedded.engine import Engine
from telemetry_pipeline.warehouse.embedded.engine_config import (
    EngineLimits,
    Layout,
    check_path,
)
from telemetry_pipeline.warehouse.embedded.errors import EmbeddedWarehouseError
from telemetry_pipeline.warehouse.embedded.users import ensure_users

_SHUTDOWN_SECONDS: Final = 2
# A query that ignores its kill must not keep the folder locked: data is safe against a hard end.
_HARD_STOP_SECONDS: Final = 4.0
_KEEP_ALIVE_SECONDS: Final = 600
_BACKLOG: Final = 128


def run(
    data_dir: Path,
    host: str,
    port: int,
    max_memory_bytes: int | None,
    on_ready: Callable[[Endpoint], None] | None,
) -> None:
    """Serve `data_dir` until SIGTERM or SIGINT; see the package's `serve`."""
    data_dir = data_dir.absolute()
    check_path(data_dir)
    layout = Layout(data_dir)
    lock = _own(layout)
    try:
        _clear_leftovers(layout)
        with _listening(host, port) as listener:
            users = ensure_users(data_dir)
            engine = Engine.start(layout, EngineLimits.from_total(max_memory_bytes))
            warehouse = Warehouse(engine, users, layout.spool, max_queries=_max_queries())
            endpoint = Endpoint(host, listener.getsockname()[1], os.getpid())
            try:
                _serve(warehouse, listener, data_dir, endpoint, on_ready)
            finally:
                remove_endpoint(data_dir)
                warehouse.workers.shutdown(wait=False, cancel_futures=True)
                warehouse.controls.shutdown(wait=False, cancel_futures=True)
                engine.close()
    finally:
        lock.release()


def _own(layout: Layout) -> OwnerLock:
    """Make the folder and take its lock."""
    try:
        layout.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        layout.data_dir.chmod(0o700)
        return OwnerLock.acquire(layout.data_dir)
    except OSError as error:
        raise _unusable(layout, error) from None


def _clear_leftovers(layout: Layout) -> None:
    """Remove what a killed server left behind."""
    try:
        layout.spool.mkdir(mode=0o700, exist_ok=True)
        layout.schemas.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The engine writes schemas that come with statements into its working directory.
        os.chdir(layout.schemas)
        for leftover in layout.spool.iterdir():
            leftover.unlink()
        remove_endpoint(layout.data_dir)
    except OSError as error:
        raise _unusable(layout, error) from None


def _unusable(layout: Layout, error: OSError) -> EmbeddedWarehouseError:
    reason = error.strerror or type(error).__name__
    return EmbeddedWarehouseError(f"the data folder {layout.data_dir} cannot be used: {reason}")


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or type(error).__name__
        raise EmbeddedWarehouseError(f"cannot listen on {host}:{port}: {reason}") from None
    with listener:
        yield listener


def _serve(
    warehouse: Warehouse,
    listener: socket.socket,
    data_dir: Path,
    endpoint: Endpoint,
    on_ready: Callable[[Endpoint], None] | None,
) -> None:
    config = uvicorn.Config(
        create_app(warehouse),
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )

    def ready() -> None:
        write_endpoint(data_dir, endpoint)
        if on_ready is not None:
            on_ready(endpoint)

    server = _Server(config, ready)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve_until_stopped(server, warehouse, listener, data_dir))


async def _serve_until_stopped(
    server: _Server, warehouse: Warehouse, listener: socket.socket, data_dir: Path
) -> None:
    background: list[asyncio.Task[None]] = []

    def stop() -> None:
        if server.should_exit:
            return
        server.should_exit = True
        _end_hard_later(data_dir)
        background.append(asyncio.create_task(warehouse.stop_queries()))

    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
    background.append(asyncio.create_task(warehouse.expire_sessions()))
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in background:
            task.cancel()
        warehouse.sessions.drop_all()


def _end_hard_later(data_dir: Path) -> None:
    def end() -> None:
        remove_endpoint(data_dir)
        os._exit(0)

    timer = threading.Timer(_HARD_STOP_SECONDS, end)
    timer.daemon = True
    timer.start()


class _Server(uvicorn.Server):
    """uvicorn's server with our signals, telling when it listens."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `_serve_until_stopped`, which has queries to kill."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()


def _max_queries() -> int:
    return max(8, 4 * (os.cpu_count() or 1))
