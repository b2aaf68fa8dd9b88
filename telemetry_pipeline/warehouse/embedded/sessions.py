"""Connections that outlive a request: settings and temporary tables under a session_id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from telemetry_pipeline.warehouse.embedded.engine import Connection
from telemetry_pipeline.warehouse.embedded.errors import QueryError
from telemetry_pipeline.warehouse.embedded.options import SessionRequest, set_statement
from telemetry_pipeline.warehouse.embedded.sql_head import quote

_MAX_SESSIONS = 1000


class Session:
    """One connection, used by one request at a time."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.lock = asyncio.Lock()
        self.users = 0
        self.expires_at = 0.0
        self._overlay: dict[str, str] = {}
        self._originals: dict[str, str | None] = {}

    def put_on(self, settings: Mapping[str, str]) -> None:
        """Apply a request's own settings, undoing those of the request before.

        On a server such settings end with their request; here they stay on the connection until
        the next request wants others. Blocking: call it in a worker thread.
        """
        if dict(settings) == self._overlay:
            return
        self.take_off()
        if not settings:
            return
        self._originals = self._current(settings)
        self._overlay = dict(settings)
        self.connection.set(settings)

    def take_off(self) -> None:
        """Undo what `put_on` set. Blocking."""
        for name, original in self._originals.items():
            if original is None:
                self.connection.execute(b"SET " + name.encode() + b" = DEFAULT")
            else:
                self.connection.execute(set_statement({name: original}))
        self._originals, self._overlay = {}, {}

    def _current(self, names: Mapping[str, str]) -> dict[str, str | None]:
        listed = b", ".join(quote(name) for name in names)
        rows = self.connection.execute(
            b"SELECT name, changed, hex(value) FROM system.settings WHERE name IN (" + listed + b")"
        )
        found: dict[str, str | None] = {}
        for line in rows.decode().splitlines():
            name, changed, value = line.split("\t")
            found[name] = bytes.fromhex(value).decode() if changed == "1" else None
        # Aliases are not listed; the default is the best that is known of them.
        return {name: found.get(name) for name in names}


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
        session.users += 1
        try:
            async with session.lock:
                yield session
        finally:
            session.users -= 1
            session.expires_at = time.monotonic() + request.timeout_seconds
            if request.close_after and session.users == 0:
                self._drop(key)

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
