"""A request's body: unpacked as it arrives, its SQL head in memory, its data in a spool file."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from starlette.types import Message, Receive

from telemetry_pipeline.warehouse.embedded import sql_head
from telemetry_pipeline.warehouse.embedded.compression import Decoder
from telemetry_pipeline.warehouse.embedded.errors import QueryError, syntax_error

# Bytes moved to a worker thread at once, for unpacking and writing.
_BATCH: Final = 1024 * 1024
# Less than this is handled where it is: handing it to a thread would take longer.
_SMALL: Final = 64 * 1024
# A statement without data is held in memory; a server's default limit is 256 KiB.
MAX_SQL_BYTES: Final = 16 * 1024 * 1024


class ClientGone(Exception):
    """The client closed the connection; nobody waits for an answer."""


class Body:
    """The unpacked body, read once from front to back in batches."""

    def __init__(self, chunks: AsyncIterator[bytes], decoder: Decoder, executor: Executor) -> None:
        self._chunks = chunks
        self._decoder = decoder
        self._executor = executor
        self._ended = False

    async def next_batch(self) -> bytes:
        """The next unpacked bytes, not empty before the end."""
        last = self._ended
        while not last:
            packed, last = await self._next_packed()
            unpacked = await self._unpack(packed)
            if last:
                self._ended = True
                self._decoder.finish()
            if unpacked:
                return unpacked
        return b""

    async def parse(self, text: bytes, *, complete: bool) -> sql_head.Statement | None:
        """`sql_head.parse`, in a thread for a text that would hold up other requests."""
        if len(text) < _SMALL:
            return sql_head.parse(text, complete=complete)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._executor, lambda: sql_head.parse(text, complete=complete)
        )

    async def _next_packed(self) -> tuple[bytes, bool]:
        """A batch of packed bytes, and whether it is the last."""
        gathered: list[bytes] = []
        size = 0
        while size < _BATCH:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return b"".join(gathered), True
            gathered.append(chunk)
            size += len(chunk)
        return b"".join(gathered), False

    async def _unpack(self, packed: bytes) -> bytes:
        if len(packed) < _SMALL:
            return self._decoder.feed(packed)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._decoder.feed, packed)


async def read_statement(query: bytes, body: Body) -> tuple[sql_head.Statement, bytes]:
    """The statement in `?query=` and body together, and the first bytes of its data.

    Reads no more of the body than the statement needs; the rest of the data is still in `body`.
    """
    statement = sql_head.parse(query, complete=False) if query else None
    if statement is not None and statement.takes_data:
        # The whole head is in the URL. What follows it there is data too, and comes first.
        inline = query[statement.data_start :]
        if inline.strip() and not inline.endswith(b"\n"):
            inline += b"\n"
        return statement, inline
    if query and (statement := _complete_with_data(query)) is not None:
        return statement, b""
    text = query
    limit = 0
    while True:
        batch = await body.next_batch()
        if batch and text is query and query:
            text += b"\n"
        text += batch
        if batch and len(text) < limit:
            continue
        statement = await body.parse(text, complete=not batch)
        if statement is not None:
            rest = text[statement.data_start :] if statement.takes_data else b""
            return statement, rest
        if len(text) > MAX_SQL_BYTES:
            raise syntax_error(f"Max query size exceeded ({MAX_SQL_BYTES} bytes)")
        # Each attempt starts anew, so the next one waits for twice the text.
        limit = 2 * len(text)


def _complete_with_data(query: bytes) -> sql_head.Statement | None:
    """The statement of a URL that ends right behind FORMAT and the format's name."""
    try:
        statement = sql_head.parse(query, complete=True)
    except QueryError:
        return None  # the body may complete it, or the error comes again with the body
    return statement if statement is not None and statement.takes_data else None


class Spool:
    """Data in a file that the engine reads; removed with `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    async def filled(cls, folder: Path, first: bytes, body: Body, executor: Executor) -> Spool:
        """A spool with `first` and all that is left of `body`."""
        spool = cls(folder / f"{uuid.uuid4().hex}.rows")
        loop = asyncio.get_running_loop()
        descriptor = os.open(spool.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                batch = first
                while batch or (batch := await body.next_batch()):
                    if len(batch) < _SMALL:
                        _write_all(file, batch)
                    else:
                        await loop.run_in_executor(executor, _write_all, file, batch)
                    batch = b""
        except BaseException:
            spool.close()
            raise
        return spool

    def close(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class Incoming:
    """The ASGI messages of one request, remembering whether its body has ended."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def receive(self) -> Message:
        """The next message, for whoever reads the request."""
        message = await self._receive()
        if not message.get("more_body"):
            self._ended = True
        return message

    async def chunks(self) -> AsyncIterator[bytes]:
        """What is left of the body, still packed; raises `ClientGone` if it breaks off."""
        while not self._ended:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if chunk := message.get("body", b""):
                yield chunk

    async def drain(self, most_bytes: int) -> None:
        """Take in what the client still sends, so that it reads the answer and not a reset."""
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > most_bytes:
                return
