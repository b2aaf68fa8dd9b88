"""Connections that outlive a request: settings and temporary tables under a session_id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from telemetry_pipeline.warehouse.embedded.engine import Connection
from telemetry_pipeline.warehouse.embedded.errors import QueryError
from telemetry_pipeline.warehouse.embedded.options import SessionRequest
from telemetry_pipeline.warehouse.embedded.sql_head import quote

_MAX_SESSIONS = 1000


class Session:
    """One connection, used by one request at a time.

    On a server the settings and the database of a request's URL end with the request. Here they
    stay on the connection until the next request wants others, and are undone then: clients
    mostly send the same ones with every request. All methods block: call them in a worker thread.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock = asyncio.Lock()
        self.users = 0
        self.expires_at = 0.0
        self._settings: dict[str, str] = {}
        self._original_settings: dict[str, str | None] = {}
        self._database: str | None = None
        self._original_database = ""

    def put_on(self, settings: Mapping[str, str], database: str | None) -> None:
        """Apply what a request's URL asks for, undoing what the request before asked for."""
        if database != self._database:
            self._take_off_database()
            if database is not None:
                self._original_database = self.connection.current_database()
                self.connection.use(database)
                self._database = database
        if dict(settings) != self._settings:
            self._take_off_settings()
            if settings:
                self._original_settings = self._current(settings)
                self._settings = dict(settings)
                self.connection.set(settings)

    def take_off(self) -> None:
        """Undo what `put_on` did, so that SET and USE change the session itself."""
        self._take_off_database()
        self._take_off_settings()

    def _take_off_database(self) -> None:
        if self._database is not None:
            self._database = None
            self.connection.use(self._original_database)

    def _take_off_settings(self) -> None:
        originals, self._original_settings, self._settings = self._original_settings, {}, {}
        for name, original in originals.items():
            if original is None:
                self.connection.execute(b"SET " + name.encode() + b" = DEFAULT")
            else:
                self.connection.set({name: original})

    def _current(self, names: Mapping[str, str]) -> dict[str, str | None]:
        """The changed value of each known setting, None for one at its default."""
        listed = b", ".join(quote(name) for name in names)
        rows = self.connection.execute(
            b"SELECT name, changed, hex(value) FROM system.settings WHERE name IN (" + listed + b")"
        )
        found: dict[str, str | None] = {}
        for line in rows.decode().splitlines():
            name, changed, value = line.split("\t")
            found[name] = bytes.fromhex(value).decode() if changed == "1" else None
        return found


class SessionStore:
    """All sessions of a server, by user and session_id."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str], Session] = {}

    @asynccontextmanager
    async def use(
        self,
        user: str,
        request: SessionRequest,
        open_connection: Callable[[], Awaitable[Connection]],
    ) -> AsyncIterator[Session]:
        """The session, alone: a second request for it waits, since clients send the next one
        before the last one's answer has been taken in."""
        key = (user, request.session_id)
        session = self._sessions.get(key)
        if session is None:
            session = await self._open(key, request, open_connection)
        if request.close_after:
            # Now and not at the end: the client's next request can come before that.
            self._sessions.pop(key, None)
        session.users += 1
        try:
            async with session.lock:
                yield session
        finally:
            session.users -= 1
            session.expires_at = time.monotonic() + request.timeout_seconds
            if session.users == 0 and self._sessions.get(key) is not session:
                session.connection.close()

    async def _open(
        self,
        key: tuple[str, str],
        request: SessionRequest,
        open_connection: Callable[[], Awaitable[Connection]],
    ) -> Session:
        if request.must_exist:
            raise QueryError(372, "SESSION_NOT_FOUND", "Session not found.")
        if len(self._sessions) >= _MAX_SESSIONS:
            raise QueryError(
                202,
                "TOO_MANY_SIMULTANEOUS_QUERIES",
                f"Too many sessions: {_MAX_SESSIONS} are open",
            )
        connection = await open_connection()
        # Two first requests of a session can both get here; the first one's connection counts.
        if (other := self._sessions.get(key)) is not None:
            connection.close()
            return other
        session = self._sessions[key] = Session(connection)
        return session

    def drop_expired(self) -> None:
        """Close the sessions nobody used for their timeout."""
        now = time.monotonic()
        for key, session in list(self._sessions.items()):
            if session.users == 0 and session.expires_at < now:
                self._drop(key)

    def drop_all(self) -> None:
        """Close every idle session, at the server's end."""
        for key, session in list(self._sessions.items()):
            if session.users == 0:
                self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            session.connection.close()
