"""A statement and its data are the same however a request is cut into pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from telemetry_pipeline.warehouse.embedded.body import Body, Spool, read_statement
from telemetry_pipeline.warehouse.embedded.compression import decoder_for
from telemetry_pipeline.warehouse.embedded.errors import QueryError
from telemetry_pipeline.warehouse.embedded.sql_head import Statement

DATA = b"'a\tFORMAT CSV\n\n;b\"\n"
HEADS = [
    b"INSERT INTO t FORMAT TSV\n",
    b"INSERT INTO t (a, b) SETTINGS x = 'y' FORMAT TSV \n",
    b"INSERT INTO t SELECT x FROM input('x String, y String') WHERE x != 'FORMAT' FORMAT TSV\n",
    b"/**/ WITH a AS (SELECT * FROM input('x String')) INSERT INTO t FROM a SELECT x FORMAT TSV\n",
]


class Pieces(Body):
    """A body that hands out the given pieces one by one."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__(nothing(), decoder_for(""), ThreadPoolExecutor(1))
        self._pieces = [piece for piece in pieces if piece]

    async def next_batch(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


async def nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def read(query: bytes, pieces: list[bytes]) -> tuple[Statement, bytes]:
    """The statement and all of its data."""

    async def run() -> tuple[Statement, bytes]:
        body = Pieces(pieces)
        statement, data = await read_statement(query, body)
        while piece := await body.next_batch():
            data += piece
        return statement, data

    return asyncio.run(run())


@pytest.mark.parametrize("head", HEADS)
def test_in_the_body_cut_anywhere(head: bytes) -> None:
    text = head + DATA
    whole, data = read(b"", [text])
    assert data == DATA
    for cut in range(1, len(text)):
        statement, data = read(b"", [text[:cut], text[cut:]])
        assert data == DATA, cut
        assert statement.with_data_file("/f") == whole.with_data_file("/f"), cut


@pytest.mark.parametrize("head", HEADS)
def test_in_the_body_byte_by_byte(head: bytes) -> None:
    statement, data = read(b"", [bytes([byte]) for byte in head + DATA])
    assert data == DATA
    assert statement.takes_data


@pytest.mark.parametrize("head", HEADS)
def test_with_the_query_in_the_url_and_the_data_in_the_body(head: bytes) -> None:
    for query in (head, head.rstrip()):
        for pieces in ([DATA], [DATA[:3], DATA[3:]], []):
            statement, data = read(query, pieces)
            assert data == b"".join(pieces), query
            assert statement.takes_data


@pytest.mark.parametrize("head", HEADS)
def test_with_the_statement_going_on_in_the_body_after_any_word(head: bytes) -> None:
    text = head + DATA
    whole, _ = read(b"", [text])
    for cut in [index for index in range(1, len(head)) if head[index : index + 1] == b" "]:
        if head[:cut].count(b"'") % 2 or head[:cut].endswith(b"TSV"):
            continue  # a cut within a string adds a line break to it; a whole head is another test
        statement, data = read(text[:cut], [text[cut:]])
        assert data == DATA, text[:cut]
        assert statement.with_data_file("/f").split() == whole.with_data_file("/f").split()


def test_with_the_first_rows_in_the_url_and_more_in_the_body() -> None:
    assert read(b"INSERT INTO t FORMAT TSV\n1\n", [b"2\n"])[1] == b"1\n2\n"
    assert read(b"INSERT INTO t FORMAT TSV\n1", [b"2\n"])[1] == b"1\n2\n"
    assert read(b"INSERT INTO t VALUES (1),", [b"(2)"])[1].split() == [b"(1),", b"(2)"]


def test_a_query_without_data_is_read_to_its_end() -> None:
    statement, data = read(b"", [b"SELECT ", b"1", b"2"])
    assert (statement.sql, data) == (b"SELECT 12", b"")


def test_a_query_without_end_is_refused() -> None:
    with pytest.raises(QueryError, match="Max query size exceeded"):
        read(b"", [b"SELECT '" + b"x" * (1 << 20)] + [b"x" * (1 << 20)] * 40)


def test_a_spool_holds_all_of_the_data_and_goes_away(tmp_path: Path) -> None:
    async def run() -> bytes:
        pieces = [b"x" * 100_000, b"y" * 10, b"z" * 3_000_000]
        with ThreadPoolExecutor(1) as pool:
            spool = await Spool.filled(tmp_path, b"first", Pieces(pieces), pool)
            with spool:
                assert spool.path.stat().st_mode & 0o777 == 0o600
                return spool.path.read_bytes()

    stored = asyncio.run(run())
    assert stored == b"first" + b"x" * 100_000 + b"y" * 10 + b"z" * 3_000_000
    assert list(tmp_path.iterdir()) == []
