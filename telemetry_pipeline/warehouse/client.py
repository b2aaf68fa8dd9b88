"""The one way to the warehouse: a client of CLICKHOUSE_URL, else of the embedded one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, Error

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.paths import Project

Role = Literal["writer", "reader"]


class WarehouseError(TelemetryError):
    """The warehouse cannot be reached or refuses the caller."""

    exit_code = 3


@dataclass(frozen=True)
class Address:
    """Host, port, credentials and scheme of a warehouse. Its repr shows no password."""

    scheme: str
    host: str
    port: int
    user: str
    password: str = field(repr=False)

    @property
    def shown(self) -> str:
        """The address without credentials, for messages."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return (
            f"{self.scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}"
            f"@{self.host}:{self.port}"
        )


def is_external() -> bool:
    """Whether CLICKHOUSE_URL names a server; then nothing embedded is started."""
    return bool(os.environ.get("CLICKHOUSE_URL"))


def find_address(project: Project, role: Role = "writer") -> Address:
    """CLICKHOUSE_URL (for readers CLICKHOUSE_READER_URL, if set), else the embedded one."""
    url = os.environ.get("CLICKHOUSE_URL")
    if role == "reader":
        url = os.environ.get("CLICKHOUSE_READER_URL") or url
    if url:
        return parse_url(url)
    from telemetry_pipeline.warehouse import embedded

    endpoint = embedded.read_endpoint(project.warehouse_dir)
    if endpoint is None:
        raise WarehouseError(
            "no warehouse is running: start `telemetry dev` (or `telemetry warehouse serve`), "
            "or set CLICKHOUSE_URL"
        )
    users = embedded.read_users(project.warehouse_dir)
    login = users.writer if role == "writer" else users.reader
    return Address("http", endpoint.host, endpoint.port, login.name, login.password)


def find_spool(project: Project) -> Path | None:
    """Where data for the embedded warehouse may be put; None for a server."""
    if is_external():
        return None
    from telemetry_pipeline.warehouse.embedded.engine_config import Layout

    spool = Layout(project.warehouse_dir).spool
    return spool if os.access(spool, os.W_OK) else None


def insert_data(
    client: Client, sql: str, data: bytes, settings: Mapping[str, Any], spool: Path | None = None
) -> None:
    """Run an INSERT ... FORMAT whose data follows it. `spool`: of an embedded warehouse."""
    # One line end, or what follows it would be taken for data.
    head = sql.rstrip().encode() + b"\n"
    if spool is None:
        body = (piece for piece in (head, data))
        client.raw_insert(table="", insert_block=body, settings=dict(settings))
        return
    from telemetry_pipeline.warehouse.embedded.handover import handed_over

    with handed_over(spool, data) as headers:
        client.raw_insert(
            table="", insert_block=head, settings=dict(settings), transport_settings=headers
        )


def parse_url(url: str) -> Address:
    """An Address from http(s)://[user[:password]@]host[:port]; raises WarehouseError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise WarehouseError(f"CLICKHOUSE_URL has no valid port; {_EXPECTED}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WarehouseError(f"CLICKHOUSE_URL is not understood; {_EXPECTED}")
    return Address(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or (8443 if parts.scheme == "https" else 8123),
        user=unquote(parts.username or "default"),
        password=unquote(parts.password or ""),
    )


_EXPECTED = "expected http(s)://user:password@host:port"


def connect(
    project: Project,
    *,
    role: Role = "writer",
    database: str | None = None,
    session_id: str | None = None,
    log_comment: str = "",
) -> Client:
    """A client of the warehouse. Raises WarehouseError with one clear line.

    `database` is what names without one are looked for in; without it, the server's default.
    `session_id` gives temporary tables a home; without it requests are independent.
    `log_comment` (a run id) stands in the server's query log beside every statement.
    """
    address = find_address(project, role)
    settings: dict[str, object] = {"async_insert": 0}
    if log_comment:
        settings["log_comment"] = log_comment
    try:
        return clickhouse_connect.get_client(
            interface=address.scheme,
            host=address.host,
            port=address.port,
            username=address.user,
            password=address.password,
            database=database,
            session_id=session_id,
            autogenerate_session_id=False,
            query_retries=0,
            connect_timeout=10,
            send_receive_timeout=600,
            settings=settings,
        )
    except (ClickHouseError, Error) as error:
        raise WarehouseError(f"warehouse at {address.shown}: {short_reason(error)}") from None


def short_reason(error: Exception) -> str:
    """One line of a driver error, without the statement that failed."""
    text = str(error)
    for sign, meaning in (
        ("AUTHENTICATION_FAILED", "user or password is wrong"),
        ("Connection refused", "connection refused; is it running?"),
        ("Name or service not known", "host name not known"),
        ("NameResolutionError", "host name not known"),
        ("timed out", "no answer in time"),
        ("Max retries exceeded", "cannot be reached"),
    ):
        if sign in text:
            return meaning
    return text.splitlines()[0][:200] if text else type(error).__name__
