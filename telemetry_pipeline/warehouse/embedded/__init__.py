"""The embedded warehouse: ClickHouse's HTTP interface over chDB, one process for one folder.

Importing this package is cheap; the engine and the web server are loaded by `serve` only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from telemetry_pipeline.warehouse.embedded.endpoint import Endpoint, read_endpoint
from telemetry_pipeline.warehouse.embedded.errors import EmbeddedWarehouseError
from telemetry_pipeline.warehouse.embedded.users import User, Users, ensure_users, read_users

__all__ = [
    "EmbeddedWarehouseError",
    "Endpoint",
    "User",
    "Users",
    "ensure_users",
    "read_endpoint",
    "read_users",
    "serve",
]


def serve(
    data_dir: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    max_memory_bytes: int | None = None,
    on_ready: Callable[[Endpoint], None] | None = None,
) -> None:
    """Serve the warehouse in `data_dir` until SIGTERM or SIGINT.

    Port 0 lets the system choose one; `on_ready` is called with the address once queries are
    answered, and `read_endpoint(data_dir)` tells it to other processes. The engine uses up to
    `max_memory_bytes`, by default 60 % of the machine's memory.

    Raises `EmbeddedWarehouseError`, with a message for a person, if the folder is in use or
    unusable or the port is taken. Call it in the main thread of a process that does nothing else.
    """
    from telemetry_pipeline.warehouse.embedded import server

    server.run(data_dir, host, port, max_memory_bytes, on_ready)
