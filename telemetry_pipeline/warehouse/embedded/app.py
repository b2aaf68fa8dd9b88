"""ClickHouse's HTTP interface: from an ASGI request to an answer.

Nothing here logs: query strings, parameters and bodies can carry keys and personal data.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from telemetry_pipeline.warehouse.embedded import handover, sql_head
from telemetry_pipeline.warehouse.embedded.access import check_reader
from telemetry_pipeline.warehouse.embedded.body import (
    MAX_SQL_BYTES,
    Body,
    ClientGone,
    Incoming,
    Spool,
    read_statement,
)
from telemetry_pipeline.warehouse.embedded.compression import (
    Encoder,
    decoder_for,
    encoder_for,
)
from telemetry_pipeline.warehouse.embedded.engine import (
    QUERY_ID_SETTING,
    Connection,
    Engine,
    ResultStream,
    Statistics,
    already_running,
    can_stream,
    query_id_expression,
)
from telemetry_pipeline.warehouse.embedded.errors import (
    QueryError,
    bad_argument,
    not_supported,
)
from telemetry_pipeline.warehouse.embedded.native_revision import (
    CUSTOM_SERIALIZATION,
    with_revision,
)
from telemetry_pipeline.warehouse.embedded.options import (
    Options,
    credentials,
    parse_options,
)
from telemetry_pipeline.warehouse.embedded.secrets_guard import without_values
from telemetry_pipeline.warehouse.embedded.sessions import Session, SessionStore
from telemetry_pipeline.warehouse.embedded.sql_head import Action, Statement
from telemetry_pipeline.warehouse.embedded.users import User, Users

Result = TypeVar("Result")

# An answer up to this size is sent at once, with its length and its whole summary.
_AT_ONCE_BYTES: Final = 1024 * 1024
_KILL_INTERVAL_SECONDS: Final = 0.1
_ID_RELEASE_SECONDS: Final = 0.5
_DRAINED_ON_ERROR_BYTES: Final = 16 * 1024 * 1024
_READ_WORDS: Final = frozenset(
    ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "SET", "USE", "CHECK")
)


class AbortAnswer(Exception):
    """An answer broke off after its headers were sent; the connection must be cut, not finished."""


class Warehouse:
    """What all requests share: the engine, its threads, sessions and running queries."""

    def __init__(self, engine: Engine, users: Users, spool: Path, max_queries: int) -> None:
        self.engine = engine
        self.users = users
        self.spool = spool
        self.sessions = SessionStore()
        self.workers = ThreadPoolExecutor(max_queries + 4, thread_name_prefix="query")
        self.controls = ThreadPoolExecutor(2, thread_name_prefix="control")
        self.slots = asyncio.Semaphore(max_queries)
        self.running: set[str] = set()
        self.closing = False

    async def work(self, function: Callable[[], Result]) -> Result:
        """Run blocking engine work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, function)

    async def claim(self, query_id: str) -> None:
        """Enter an id as running; raises `QueryError` if a query with it runs.

        A client can use an id again as soon as it has the answer, which is a moment before the
        query is over here.
        """
        deadline = time.monotonic() + _ID_RELEASE_SECONDS
        while query_id in self.running:
            if time.monotonic() > deadline:
                raise already_running(query_id)
            await asyncio.sleep(0.01)
        self.running.add(query_id)

    async def kill(self, query_id: str) -> None:
        """Ask the engine to stop a query; a failure to ask is tried again by the caller."""
        with suppress(QueryError):
            await asyncio.get_running_loop().run_in_executor(
                self.controls, self.engine.kill, query_id
            )

    async def stop_queries(self) -> None:
        """Refuse new queries and kill the running ones until none is left."""
        self.closing = True
        while self.running:
            with suppress(QueryError):
                await asyncio.get_running_loop().run_in_executor(
                    self.controls, self.engine.kill_all
                )
            await asyncio.sleep(_KILL_INTERVAL_SECONDS)
        self.sessions.drop_all()

    async def expire_sessions(self) -> None:
        """Close sessions as their timeouts pass; runs as long as the server."""
        while True:
            await asyncio.sleep(1)
            self.sessions.drop_expired()


def create_app(warehouse: Warehouse) -> Starlette:
    """The ASGI application over a started engine."""

    async def alive(request: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    async def not_found(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = "There is no such handler. Send queries to /, or ask /ping.\n"
        return PlainTextResponse(text, error.status_code)

    return Starlette(
        routes=[
            Route("/ping", alive),
            Route("/replicas_status", alive),
            Route("/", _QueryEndpoint(warehouse)),
        ],
        exception_handlers={404: not_found},
    )


class _QueryEndpoint:
    """The handler of `/`."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD") and not scope["query_string"]:
            await PlainTextResponse("Ok.\n")(scope, receive, send)
            return
        exchange = _Exchange(self._warehouse, scope, Incoming(receive), send)
        try:
            await exchange.run()
        except ClientGone:
            return


class _Exchange:
    """One request and its answer."""

    def __init__(self, warehouse: Warehouse, scope: Scope, incoming: Incoming, send: Send) -> None:
        self._warehouse = warehouse
        self._incoming = incoming
        self._request = Request(scope, incoming.receive)
        self._send = send
        self._options = Options(query=b"", query_id="")
        self._encoder: Encoder | None = None
        self._started = False
        self._stats = Statistics()
        self._spooled: Spool | None = None

    async def run(self) -> None:
        """Answer the request; raises `ClientGone` when there is nobody to answer."""
        try:
            await self._answer()
        except QueryError as error:
            await self._fail(error)
        except UnicodeError:
            await self._fail(bad_argument("A URL parameter is not valid UTF-8"))
        except (ClientGone, AbortAnswer):
            raise
        except Exception as error:
            # A defect of ours. Its place is logged, its message not: it could quote a value.
            await self._fail(_defect(error))

    async def _answer(self) -> None:
        request = self._request
        headers = dict(request.headers)
        pairs = parse_qsl(request.url.query, keep_blank_values=True, errors="strict")
        user = self._authenticate(pairs, headers)
        form_pairs = await _form_pairs(request)
        self._options = options = parse_options(pairs, headers, form_pairs)
        decoder = decoder_for(headers.get("content-encoding", ""))
        body = Body(self._incoming.chunks(), decoder, self._warehouse.workers)
        statement, first = await read_statement(options.query, body)
        self._check_access(user, statement)
        if not statement.takes_data:
            await self._execute(user, statement, statement.sql)
            return
        if (name := headers.get(handover.HEADER.lower())) is not None:
            if first or await body.next_batch():
                raise bad_argument(f"{handover.HEADER}: the request has data of its own")
            spool = Spool(handover.received(self._warehouse.spool, name))
        else:
            spool = await Spool.filled(self._warehouse.spool, first, body, self._warehouse.workers)
        with spool:
            self._spooled = spool
            await self._execute(user, statement, statement.with_data_file(str(spool.path)))

    def _authenticate(self, pairs: list[tuple[str, str]], headers: dict[str, str]) -> User:
        name, password = credentials(pairs, headers)
        user = self._warehouse.users.authenticate(name, password)
        if user is None:
            raise QueryError(
                516,
                "AUTHENTICATION_FAILED",
                f"{name}: Authentication failed: password is incorrect, "
                "or there is no user with such name.",
            )
        return user

    def _check_access(self, user: User, statement: Statement) -> None:
        if user == self._warehouse.users.reader:
            check_reader(statement, self._options.database, self._options.parameters)
        reads = bool(statement.words) and statement.words[0] in _READ_WORDS
        if self._request.method in ("GET", "HEAD") and not reads:
            raise QueryError(
                164,
                "READONLY",
                f"{user.name}: Cannot execute query in readonly mode. For queries over HTTP, "
                "method GET implies readonly. You should use method POST for modifying queries.",
            )

    async def _execute(self, user: User, statement: Statement, sql: bytes) -> None:
        options, warehouse = self._options, self._warehouse
        if statement.action is Action.KILL:
            sql = sql_head.rename_identifier(sql, "query_id", query_id_expression())
        await warehouse.claim(options.query_id)
        try:
            async with self._session(user) as session, warehouse.slots:
                if warehouse.closing:
                    raise QueryError(394, "QUERY_WAS_CANCELLED", "The server is shutting down")
                if session is not None:
                    await self._run_on(session.connection, session, user, statement, sql)
                    return
                await self._run_on(None, None, user, statement, sql)
        finally:
            warehouse.running.discard(options.query_id)

    @asynccontextmanager
    async def _session(self, user: User) -> AsyncIterator[Session | None]:
        wanted = self._options.session
        if wanted is None:
            yield None
            return
        async with self._warehouse.sessions.use(
            user.name, wanted, lambda: self._warehouse.work(lambda: self._connect(user))
        ) as session:
            yield session

    def _connect(self, user: User) -> Connection:
        return self._warehouse.engine.connect(read_only=user == self._warehouse.users.reader)

    async def _run_on(
        self,
        connection: Connection | None,
        session: Session | None,
        user: User,
        statement: Statement,
        sql: bytes,
    ) -> None:
        """Run on the session's connection, or on a fresh one that is closed afterwards."""
        output_format = statement.output_format or self._options.default_format or "TabSeparated"
        # A newer Native is made of the whole answer: its blocks are cut anywhere in a stream.
        is_newer_native = (
            output_format.lower() == "native"
            and self._options.protocol_revision >= CUSTOM_SERIALIZATION
        )
        streams = (
            statement.action is Action.SELECT and can_stream(output_format) and not is_newer_native
        )
        held: list[Connection] = []
        stream: ResultStream | None = None

        def begin() -> tuple[bytes, ResultStream | None]:
            used = connection
            if used is None:
                used = self._connect(user)
                held.append(used)
            self._prepare(used, session, statement)
            if not streams:
                whole = used.query(sql, output_format, self._options.parameters, self._stats)
                return with_revision(whole) if is_newer_native else whole, None
            started = used.stream(sql, output_format, self._options.parameters, self._stats)
            return _gather(started)

        try:
            first, stream = await self._unless_gone(begin)
            await self._send_result(first, stream, output_format)
        finally:
            await self._warehouse.work(lambda: _close_all(stream, held))

    def _prepare(
        self, connection: Connection, session: Session | None, statement: Statement
    ) -> None:
        options = self._options
        settings = dict(options.settings)
        settings.pop(QUERY_ID_SETTING, None)
        readonly = settings.pop("readonly", None)
        if session is None:
            if options.database is not None:
                connection.use(options.database)
            connection.set({**settings, QUERY_ID_SETTING: options.query_id})
            if readonly is not None:
                connection.set({"readonly": readonly})
            return
        if readonly is not None:
            raise not_supported("readonly as a URL parameter within a session")
        if statement.words[:1] in (("SET",), ("USE",)):
            session.take_off()
        else:
            session.put_on(settings, options.database)
        connection.set({QUERY_ID_SETTING: options.query_id})

    async def _unless_gone(self, function: Callable[[], Result]) -> Result:
        """Run engine work; if the client hangs up meanwhile, kill the query and forget it."""
        work = asyncio.ensure_future(self._warehouse.work(function))
        gone = asyncio.ensure_future(_disconnected(self._request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            while not work.done():
                await self._warehouse.kill(self._options.query_id)
                await asyncio.wait({work}, timeout=_KILL_INTERVAL_SECONDS)
            with suppress(QueryError):
                work.result()
            raise ClientGone
        finally:
            gone.cancel()

    # --- answers ---------------------------------------------------------------------------------

    async def _send_result(
        self, first: bytes, stream: ResultStream | None, output_format: str
    ) -> None:
        if stream is None:
            await self._send_whole(first, output_format)
        elif self._options.wait_end_of_query:
            with tempfile.TemporaryFile(dir=self._warehouse.spool) as file:
                await self._unless_gone(lambda: _drain(first, stream, file))
                await self._send_file(file, output_format)
        else:
            await self._send_stream(first, stream, output_format)

    async def _send_whole(self, data: bytes, output_format: str) -> None:
        headers = self._headers(output_format)
        if self._encoder is not None:
            data = self._encoder.feed(data) + self._encoder.finish()
        headers["Content-Length"] = str(len(data))
        await self._start(200, headers)
        await self._send({"type": "http.response.body", "body": data})

    async def _send_file(self, file: IO[bytes], output_format: str) -> None:
        await self._start(200, self._headers(output_format))
        file.seek(0)
        while piece := await self._warehouse.work(lambda: file.read(_AT_ONCE_BYTES)):
            await self._send_piece(piece)
        await self._send_end()

    async def _send_stream(self, first: bytes, stream: ResultStream, output_format: str) -> None:
        tag = secrets.token_hex(8)
        headers = self._headers(output_format)
        headers["X-ClickHouse-Exception-Tag"] = tag
        await self._start(200, headers)
        piece = first
        try:
            while piece:
                await self._send_piece(piece)
                piece = await self._unless_gone(stream.fetch)
        except QueryError as error:
            await self._send_piece(_exception_block(self._cleaned(error), tag))
            if self._encoder is not None:
                await self._send_raw(self._encoder.finish())
            raise AbortAnswer from None
        await self._send_end()

    async def _send_piece(self, data: bytes) -> None:
        await self._send_raw(data if self._encoder is None else self._encoder.feed(data))

    async def _send_raw(self, data: bytes) -> None:
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _send_end(self) -> None:
        tail = b"" if self._encoder is None else self._encoder.finish()
        await self._send({"type": "http.response.body", "body": tail})

    async def _fail(self, error: QueryError) -> None:
        if self._started:
            raise AbortAnswer from None
        error = self._cleaned(error)
        await self._incoming.drain(_DRAINED_ON_ERROR_BYTES)
        self._encoder = None
        data = (error.text + "\n").encode()
        headers = self._headers(None)
        headers["X-ClickHouse-Exception-Code"] = str(error.code)
        headers["Content-Length"] = str(len(data))
        await self._start(error.http_status, headers)
        await self._send({"type": "http.response.body", "body": data})

    def _cleaned(self, error: QueryError) -> QueryError:
        """The error without parameter values and without the path of a spool file."""
        cleaned = without_values(error, self._options.parameters)
        if self._spooled is None:
            return cleaned
        message = cleaned.message.replace(str(self._spooled.path), "request body")
        return QueryError(cleaned.code, cleaned.name, message)

    def _headers(self, output_format: str | None) -> dict[str, str]:
        headers = {
            "Content-Type": _content_type(output_format),
            "X-ClickHouse-Server-Display-Name": "embedded",
            "X-ClickHouse-Timezone": "UTC",
            "X-ClickHouse-Summary": _summary(self._stats),
        }
        if self._options.query_id:
            headers["X-ClickHouse-Query-Id"] = _header_value(self._options.query_id)
        if output_format is not None:
            headers["X-ClickHouse-Format"] = output_format
            if self._options.compress_answer:
                accepted = encoder_for(self._request.headers.get("accept-encoding", ""))
                if accepted is not None:
                    headers["Content-Encoding"], self._encoder = accepted
        return headers

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self._started = True
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


def _gather(stream: ResultStream) -> tuple[bytes, ResultStream | None]:
    """The first pieces, and the stream if it did not end within them. Blocking."""
    pieces: list[bytes] = []
    size = 0
    try:
        while size < _AT_ONCE_BYTES:
            piece = stream.fetch()
            if not piece:
                return b"".join(pieces), None
            pieces.append(piece)
            size += len(piece)
    except BaseException:
        stream.close()
        raise
    return b"".join(pieces), stream


def _drain(first: bytes, stream: ResultStream, file: IO[bytes]) -> None:
    """All the rest of a result into a file. Blocking."""
    piece = first
    while piece:
        file.write(piece)
        piece = stream.fetch()


def _close_all(stream: ResultStream | None, connections: list[Connection]) -> None:
    if stream is not None:
        with suppress(QueryError, RuntimeError):
            stream.close()
    for connection in connections:
        connection.close()


async def _disconnected(request: Request) -> None:
    message: MutableMapping[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()


async def _form_pairs(request: Request) -> list[tuple[str, str]]:
    """The fields of a multipart form, none for any other body."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return []
    try:
        form = await request.form(max_part_size=MAX_SQL_BYTES)
    except HTTPException as error:
        raise bad_argument(f"The multipart form is not readable: {error.detail}") from None
    pairs: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            await form.close()
            raise not_supported(
                "A file in a form is an external table, which the embedded warehouse does not "
                "take; use a session with CREATE TEMPORARY TABLE"
            )
        pairs.append((name, value))
    return pairs


def _defect(error: Exception) -> QueryError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    kind = type(error).__name__
    where = f"{Path(place.filename).name}:{place.lineno}"
    print(f"warehouse: {kind} in {where}", file=sys.stderr, flush=True)
    return QueryError(49, "LOGICAL_ERROR", f"The embedded server failed: {kind} in {where}")


def _exception_block(error: QueryError, tag: str) -> bytes:
    """A server's marker for an exception after the answer began."""
    text = (error.text + "\n").encode()
    mark = tag.encode()
    return b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (
        mark,
        text,
        len(text),
        mark,
    )


def _summary(stats: Statistics) -> str:
    return json.dumps(
        {
            "read_rows": str(stats.read_rows),
            "read_bytes": str(stats.read_bytes),
            "written_rows": str(stats.written_rows),
            "written_bytes": str(stats.written_bytes),
            "total_rows_to_read": str(stats.read_rows),
            "result_rows": str(stats.result_rows),
            "result_bytes": str(stats.result_bytes),
            "elapsed_ns": str(int(stats.elapsed_seconds * 1e9)),
        }
    )


def _content_type(output_format: str | None) -> str:
    lowered = (output_format or "").lower()
    if lowered.startswith("json"):
        return "application/json; charset=UTF-8"
    if lowered.startswith(("tsv", "tabseparated")):
        return "text/tab-separated-values; charset=UTF-8"
    if lowered.startswith("csv"):
        return "text/csv; charset=UTF-8; header=absent"
    if not lowered:
        return "text/plain; charset=UTF-8"
    return "application/octet-stream"


def _header_value(text: str) -> str:
    """A client's text as a header: printable ASCII only, so that it cannot add a header."""
    return "".join(character for character in text if " " <= character <= "~")
