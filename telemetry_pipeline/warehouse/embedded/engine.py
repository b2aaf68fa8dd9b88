"""The one border to chDB: connections, results and killing, with types on our side of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from telemetry_pipeline.warehouse.embedded.engine_config import (
    READER_ROLE,
    EngineLimits,
    Layout,
    write_config,
)
from telemetry_pipeline.warehouse.embedded.errors import (
    EmbeddedWarehouseError,
    QueryError,
    from_engine,
)
from telemetry_pipeline.warehouse.embedded.options import set_statement
from telemetry_pipeline.warehouse.embedded.sql_head import quote

# chDB gives no way to choose a query's id. This setting is free text, shows up in
# system.processes and does nothing while the query cache is off: it carries the client's id.
QUERY_ID_SETTING: Final = "query_cache_tag"

# Formats whose chunks, joined, are the whole answer. The others repeat a header in each chunk.
STREAMABLE_FORMATS: Final = frozenset(
    (
        "native",
        "tsv",
        "tabseparated",
        "tsvraw",
        "tabseparatedraw",
        "csv",
        "jsoneachrow",
        "jsonlines",
        "ndjson",
        "jsoncompacteachrow",
        "rowbinary",
    )
)

# chDB sets these itself, over the users file, for use from a command line: `1 + 1` is no query on
# a server, and a body read by mmap would count as this process's memory.
_AS_ON_A_SERVER: Final = {"implicit_select": "0", "storage_file_read_method": "pread"}


@dataclass
class Statistics:
    """What a query did so far; the source of X-ClickHouse-Summary."""

    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0
    elapsed_seconds: float = 0.0


class Engine:
    """The database of one data folder. One process may have one of it at a time."""

    def __init__(self, module: Any, layout: Layout, keeper: Any) -> None:
        self._module = module
        self._layout = layout
        # The engine closes the database with its last connection; this one stays open.
        self._keeper = keeper

    @classmethod
    def start(cls, layout: Layout, limits: EngineLimits) -> Engine:
        """Open the database below `layout`, creating it if needed."""
        os.environ["TZ"] = "UTC"
        time.tzset()
        write_config(layout, limits)
        import chdb

        module: Any = chdb._chdb

        # The engine's handlers would take SIGTERM from the server.
        module.reset_signal_handlers()
        module.set_signal_handlers_enabled(0)
        try:
            keeper = module.connect(_connection_string(layout))
        except RuntimeError as error:
            reason = from_engine(str(error)).message.splitlines()[0]
            raise EmbeddedWarehouseError(
                f"the database in {layout.database} cannot be opened, perhaps because another "
                f"program has it open: {reason}"
            ) from None
        return cls(module, layout, keeper)

    def connect(self, *, read_only: bool) -> Connection:
        """A connection of its own: settings and temporary tables are seen by nobody else."""
        raw = self._module.connect(_connection_string(self._layout))
        connection = Connection(raw)
        connection.set(_AS_ON_A_SERVER)
        if read_only:
            connection.execute(b"SET ROLE " + READER_ROLE.encode())
            connection.execute(b"SET readonly = 2")
        return connection

    def kill(self, query_id: str) -> None:
        """Ask the running queries with this id to stop; returns at once."""
        self._control(
            b"KILL QUERY WHERE " + query_id_expression() + b" = " + quote(query_id) + b" ASYNC"
        )

    def kill_all(self) -> None:
        """Ask every running query to stop; returns at once."""
        self._control(b"KILL QUERY WHERE 1 ASYNC")

    def close(self) -> None:
        """Close the database."""
        self._keeper.close()

    def _control(self, sql: bytes) -> None:
        with Connection(self._module.connect(_connection_string(self._layout))) as connection:
            connection.execute(sql)


class Connection:
    """One chDB connection. Not for two threads at once; a stream may move between threads."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection with its settings and temporary tables."""
        self._raw.close()

    def execute(self, sql: bytes) -> bytes:
        """Run a statement of the server's own and return its rows as TSV."""
        return self.query(sql, "TSV", {}, Statistics())

    def set(self, settings: Mapping[str, str]) -> None:
        """Set settings for all that follows on this connection."""
        if settings:
            self.execute(set_statement(settings))

    def use(self, database: str) -> None:
        """Make a database the current one."""
        escaped = database.encode().replace(b"\\", b"\\\\").replace(b"`", b"\\`")
        self.execute(b"USE `" + escaped + b"`")

    def current_database(self) -> str:
        """The name of the current database."""
        return bytes.fromhex(self.execute(b"SELECT hex(currentDatabase())").decode()).decode()

    def query(
        self, sql: bytes, output_format: str, parameters: Mapping[str, str], stats: Statistics
    ) -> bytes:
        """Run one statement and return its whole output."""
        try:
            result = self._raw.query(sql, output_format, params=dict(parameters))
        except RuntimeError as error:
            raise from_engine(str(error)) from None
        data = bytes(result.bytes() or b"")
        stats.read_rows = int(result.storage_rows_read())
        stats.read_bytes = int(result.storage_bytes_read())
        stats.written_rows = int(result.rows_written())
        stats.written_bytes = int(result.bytes_written())
        stats.result_rows = int(result.rows_read())
        stats.result_bytes = len(data)
        stats.elapsed_seconds = float(result.elapsed())
        return data

    def stream(
        self, sql: bytes, output_format: str, parameters: Mapping[str, str], stats: Statistics
    ) -> ResultStream:
        """Start a SELECT whose output is fetched piece by piece."""
        try:
            handle = self._raw.send_query(sql, output_format, params=dict(parameters))
        except RuntimeError as error:
            raise from_engine(str(error)) from None
        if handle.has_error():
            raise from_engine(str(handle.error_message()))
        return ResultStream(self._raw, handle, stats)


class ResultStream:
    """The output of a running SELECT."""

    def __init__(self, raw: Any, handle: Any, stats: Statistics) -> None:
        self._raw = raw
        self._handle = handle
        self._stats = stats
        self._finished = False
        self._started = time.monotonic()

    def fetch(self) -> bytes:
        """The next piece, empty at the end. Raises `QueryError` if the query failed."""
        if self._finished:
            return b""
        try:
            chunk = self._raw.streaming_fetch_result(self._handle)
        except RuntimeError as error:
            self._finished = True
            raise from_engine(str(error)) from None
        if chunk.has_error():
            self._finished = True
            raise from_engine(str(chunk.error_message()))
        data = bytes(chunk.bytes() or b"")
        self._finished = not data
        self._stats.read_rows += int(chunk.storage_rows_read())
        self._stats.read_bytes += int(chunk.storage_bytes_read())
        self._stats.result_rows += int(chunk.rows_read())
        self._stats.result_bytes += len(data)
        self._stats.elapsed_seconds = time.monotonic() - self._started
        return data

    def close(self) -> None:
        """Give up what was not fetched."""
        if not self._finished:
            self._finished = True
            self._raw.streaming_cancel_query(self._handle)


def query_id_expression() -> bytes:
    """Where system.processes has the id a client chose."""
    return b"Settings['" + QUERY_ID_SETTING.encode() + b"']"


def can_stream(output_format: str) -> bool:
    """Whether an answer in this format may be sent piece by piece."""
    return output_format.lower() in STREAMABLE_FORMATS


def already_running(query_id: str) -> QueryError:
    """Code 216, as a server answers."""
    return QueryError(
        216,
        "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
        f"Query with id = {query_id} is already running.",
    )


def _connection_string(layout: Layout) -> str:
    return f"{layout.database}?config-file={layout.config}"
