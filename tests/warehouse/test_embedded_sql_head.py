"""Telling SQL from data, and rewriting input(): pure functions, no server."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_pipeline.warehouse.embedded.errors import QueryError
from telemetry_pipeline.warehouse.embedded.lexer import Kind, tokens
from telemetry_pipeline.warehouse.embedded.sql_head import (
    Action,
    Statement,
    parse,
    rename_identifier,
    table_functions_in,
)

PATH = "/data/tmp/x.rows"


def parsed(text: str | bytes) -> Statement:
    raw = text.encode() if isinstance(text, str) else text
    statement = parse(raw, complete=True)
    assert statement is not None
    return statement


def rewritten(text: str) -> str:
    return parsed(text).with_data_file(PATH).decode()


def data_of(text: bytes) -> bytes:
    statement = parsed(text)
    assert statement.data_start is not None
    return text[statement.data_start :]


class TestDataBegins:
    @pytest.mark.parametrize(
        ("text", "data"),
        [
            (b"INSERT INTO t FORMAT TSV\n1\t2\n", b"1\t2\n"),
            (b"INSERT INTO t FORMAT TSV 1\t2\n", b"1\t2\n"),
            (b"INSERT INTO t FORMAT TSV  \r\n1\n", b"1\n"),
            (b"INSERT INTO t FORMAT TSV\n\n1\n", b"\n1\n"),
            (b"INSERT INTO t (a, b) FORMAT Native\n\x00\x01'\"`/*", b"\x00\x01'\"`/*"),
            (b"insert into t values (1, 'a'), (2, 'b')", b" (1, 'a'), (2, 'b')"),
            (b"INSERT INTO t FORMAT TSV", b""),
            (b"INSERT INTO format.values FORMAT CSV\n1", b"1"),
            (b"INSERT INTO `FORMAT` (`VALUES`) FORMAT CSV\n1", b"1"),
            (b"INSERT INTO {t:Identifier} FORMAT CSV\n1", b"1"),
            (b"INSERT INTO FUNCTION null('x Int8') FORMAT CSV\n1", b"1"),
            (b"INSERT INTO t SETTINGS async_insert = 0 FORMAT CSV\n1", b"1"),
            (b"/* FORMAT TSV */ INSERT INTO t -- VALUES (1)\n FORMAT CSV\n1", b"1"),
        ],
    )
    def test_behind_the_format_or_values(self, text: bytes, data: bytes) -> None:
        assert data_of(text) == data

    def test_as_soon_as_the_head_is_there_and_not_before(self) -> None:
        text = b"INSERT INTO t (a) FORMAT JSONEachRow\n" + b'{"a": 1}\n' * 3
        head = text.index(b"{")
        for length in range(head - 1):
            assert parse(text[:length], complete=False) is None, length
        assert parse(text[:head], complete=False) is not None

    def test_nowhere_in_a_select(self) -> None:
        assert parsed("SELECT 1 FORMAT TSV").data_start is None

    def test_not_at_a_stray_semicolon(self) -> None:
        with pytest.raises(QueryError, match="excessive ';'"):
            parsed("INSERT INTO t FORMAT TSV;\n1")


class TestInsertsWithData:
    def test_read_the_data_from_a_file(self) -> None:
        assert rewritten("INSERT INTO t (a) FORMAT TSV\n1").split() == (
            f"INSERT INTO t (a) FROM INFILE '{PATH}' COMPRESSION 'none' FORMAT TSV".split()
        )

    def test_keep_their_settings(self) -> None:
        assert rewritten("INSERT INTO t SETTINGS a = 1 VALUES (1)").split() == (
            f"INSERT INTO t FROM INFILE '{PATH}' COMPRESSION 'none' SETTINGS a = 1 "
            "FORMAT Values".split()
        )

    def test_quote_the_path(self) -> None:
        sql = parsed("INSERT INTO t FORMAT TSV\n").with_data_file("/it's")
        assert rb"'/it\'s'" in sql

    def test_without_any_data_clause_are_refused(self) -> None:
        with pytest.raises(QueryError, match="VALUES, FORMAT or SELECT"):
            parsed("INSERT INTO t (a)")

    def test_cannot_smuggle_sql_through_the_name_of_the_format(self) -> None:
        with pytest.raises(QueryError, match="UNKNOWN_FORMAT"):
            parsed('INSERT INTO t FORMAT "TSV SETTINGS x = 1"\n1')


class TestInput:
    @pytest.mark.parametrize(
        ("call", "arguments"),
        [
            ("input('x String')", "'x String')"),
            ("INPUT('x String')", "'x String')"),
            ("Input ( 'x String' )", " 'x String' )"),
            ("input\n(\n'x String')", "\n'x String')"),
            ("input/* ( */('x String')", "'x String')"),
            ("`input`('x String')", "'x String')"),
            ("\"input\"('x String')", "'x String')"),
            (r"input('x Enum8(\'a\' = 1)')", r"'x Enum8(\'a\' = 1)')"),
            ("input('x Enum8(''a'' = 1)')", "'x Enum8(''a'' = 1)')"),
            ("input({structure:String})", "{structure:String})"),
            ("input($$x String$$)", "$$x String$$)"),
        ],
    )
    def test_is_rewritten_however_it_is_written(self, call: str, arguments: str) -> None:
        text = f"INSERT INTO t SELECT x FROM {call} WHERE x != '' FORMAT LineAsString\nabc"
        assert rewritten(text) == (
            f"INSERT INTO t SELECT x FROM file('{PATH}', 'LineAsString', {arguments} WHERE x != '' "
        )
        assert data_of(text.encode()) == b"abc"

    @pytest.mark.parametrize(
        "text",
        [
            "INSERT INTO t SELECT * FROM (SELECT x FROM input('x String')) FORMAT TSV\n1",
            "INSERT INTO t WITH c AS (SELECT * FROM input('x String')) FROM c FORMAT TSV\n1",
            "WITH c AS (SELECT x FROM input('x String')) INSERT INTO t FROM c FORMAT TSV\n1",
            "INSERT INTO t (SELECT x FROM input('x String')) FORMAT TSV\n1",
            "INSERT INTO t SELECT a.x FROM a JOIN input('x String') b ON a.x = b.x FORMAT TSV\n1",
            "INSERT INTO t SELECT x FROM a, input('x String') FORMAT TSV\n1",
            "INSERT INTO t FROM input('x String') SELECT x FORMAT TSV\n1",
            "INSERT INTO t SELECT x AS format FROM input('x String') FORMAT TSV\n1",
            "INSERT INTO t SELECT format FROM input('format String') ORDER BY format FORMAT TSV\n1",
            "INSERT INTO t SELECT x FROM input('x String') SETTINGS max_threads = 1 FORMAT TSV\n1",
        ],
    )
    def test_is_found_anywhere_in_the_select(self, text: str) -> None:
        assert f"file('{PATH}', 'TSV', '" in rewritten(text)
        assert "FORMAT TSV" not in rewritten(text)
        assert data_of(text.encode()) == b"1"

    @pytest.mark.parametrize(
        "text",
        [
            "INSERT INTO t SELECT 'input(' FROM x",
            "INSERT INTO t SELECT 1 -- input('x String')\n",
            "INSERT INTO t SELECT /* FROM input('x String') */ 1",
            "INSERT INTO input (a) SELECT 1",
            "INSERT INTO t SELECT input FROM x",
            "INSERT INTO t SELECT $a$ FROM input('x') $a$",
        ],
    )
    def test_in_a_string_a_comment_or_a_name_is_left_alone(self, text: str) -> None:
        statement = parsed(text)
        assert (statement.action, statement.sql) == (Action.OTHER, text.encode())

    @pytest.mark.parametrize(
        "text",
        [
            "INSERT INTO t SELECT x FROM input('x String')",
            "INSERT INTO t SELECT x FROM input('x String') FORMAT",
            "INSERT INTO t SELECT x FROM input() FORMAT TSV\n1",
            "INSERT INTO t SELECT input('x String') FORMAT TSV\n1",
            "INSERT INTO t SELECT x FROM input('x String') a, input('x String') b FORMAT TSV\n1",
            "INSERT INTO t SELECT x FROM input('x String') WHERE x = 'open FORMAT TSV\n1",
            "INSERT INTO t SELECT x FROM \"in\\x70ut\"('x String') FORMAT TSV\n1",
            "SELECT x FROM input('x String') FORMAT TSV",
            "CREATE VIEW v AS SELECT x FROM input('x String')",
            "CREATE TABLE c ENGINE = Memory AS SELECT x FROM `input` ('x String')",
            "EXPLAIN INSERT INTO t SELECT x FROM input('x String') FORMAT TSV\n1",
            "INSERT INTO t SELECT 1; INSERT INTO t SELECT x FROM input('x String') FORMAT TSV\n1",
        ],
    )
    def test_that_cannot_be_given_its_data_is_an_error(self, text: str) -> None:
        with pytest.raises(QueryError):
            parsed(text)

    @given(st.text(alphabet="'\"`\\ \n/*-#$x(){};,input", max_size=40))
    def test_never_reaches_the_engine_under_any_text_around_it(self, noise: str) -> None:
        text = f"INSERT INTO t SELECT x FROM input('x String') {noise}FORMAT TSV\n1\n".encode()
        try:
            statement = parse(text, complete=True)
        except QueryError:
            return
        assert statement is not None
        if statement.takes_data:
            assert b"input" not in table_functions_in_safely(statement.with_data_file(PATH))
            return
        raise AssertionError("a statement over input() was taken for one without data")


def table_functions_in_safely(sql: bytes) -> set[bytes]:
    return {name.encode() for name in table_functions_in(sql)}


class TestStatements:
    @pytest.mark.parametrize(
        ("text", "output_format"),
        [
            ("SELECT 1 FORMAT JSON", "JSON"),
            ("SELECT 1 format CSV;", "CSV"),
            ("SELECT 1 FORMAT Native SETTINGS max_threads = 1", "Native"),
            ("SELECT format FROM t", None),
            ("SELECT 1 AS format", None),
            ("SELECT format(1) FROM t", None),
            ("SELECT 'x FORMAT JSON'", None),
            ("SELECT * FROM (SELECT 1) -- FORMAT JSON", None),
            ("SHOW TABLES FORMAT TSVWithNames", "TSVWithNames"),
        ],
    )
    def test_name_their_output_format(self, text: str, output_format: str | None) -> None:
        assert parsed(text).output_format == output_format

    @pytest.mark.parametrize(
        "text",
        ["SELECT 1; SELECT 2", "SELECT 1; ; DROP TABLE t", "INSERT INTO t SELECT 1; SELECT 2"],
    )
    def test_come_one_at_a_time(self, text: str) -> None:
        with pytest.raises(QueryError, match="Multi-statements"):
            parsed(text)

    def test_may_end_with_semicolons(self) -> None:
        assert parsed("SELECT ';' ; ;").sql.strip() == b"SELECT ';'"

    @pytest.mark.parametrize("text", ["", "  ", "-- nothing", ";"])
    def test_must_not_be_empty(self, text: str) -> None:
        with pytest.raises(QueryError, match="Empty query"):
            parsed(text)

    @pytest.mark.parametrize(
        "text",
        ["SELECT 1 INTO OUTFILE 'x'", "INSERT INTO t FROM INFILE 'x' FORMAT CSV"],
    )
    def test_do_not_read_or_write_files_of_a_command_line_client(self, text: str) -> None:
        with pytest.raises(QueryError, match="not allowed over HTTP"):
            parsed(text)

    def test_that_kill_can_be_given_the_clients_query_id(self) -> None:
        sql = b"KILL QUERY WHERE query_id = 'query_id' AND `query_id` != ''"
        assert rename_identifier(sql, "query_id", b"mine") == (
            b"KILL QUERY WHERE mine = 'query_id' AND mine != ''"
        )
        with_parameter = b"KILL QUERY WHERE query_id = { query_id : String} SYNC"
        assert rename_identifier(with_parameter, "query_id", b"mine") == (
            b"KILL QUERY WHERE mine = { query_id : String} SYNC"
        )


class TestLexing:
    def test_knows_the_kinds_of_tokens(self) -> None:
        text = b"a1 \"b\"\"c\" `d` 'e\\'f' 1e5 $t$ ' $t$ ( /* ' */ -- \"\n x"
        found = [(token.kind, token.value) for token in tokens(text, complete=True)]
        assert found == [
            (Kind.WORD, "A1"),
            (Kind.QUOTED, 'b"c'),
            (Kind.QUOTED, "d"),
            (Kind.STRING, ""),
            (Kind.NUMBER, "1e5"),
            (Kind.STRING, ""),
            (Kind.SYMBOL, "("),
            (Kind.WORD, "X"),
        ]

    @pytest.mark.parametrize(
        "noise", [b"'" + b"\\a" * 200_000, b"(" * 200_000, b"/*" * 200_000, b"$" * 200_000]
    )
    def test_takes_time_in_proportion_to_the_text(self, noise: bytes) -> None:
        started = time.process_time()
        with pytest.raises(QueryError):
            parse(b"INSERT INTO t SELECT x FROM input('x') " + noise, complete=True)
        assert time.process_time() - started < 30  # a backtracking parser needs hours

    @given(st.binary(max_size=200))
    def test_never_fails_otherwise_than_with_a_query_error(self, text: bytes) -> None:
        for prefix in (b"", b"INSERT INTO t ", b"SELECT "):
            with suppress(QueryError):
                parse(prefix + text, complete=True)
