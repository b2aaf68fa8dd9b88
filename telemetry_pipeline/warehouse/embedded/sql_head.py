"""What a request's SQL asks for: where its data begins, and how the engine must be given it.

chDB differs from a server in one dangerous way: `input()` with inline data inserts nothing and
reports success. So data never reaches the engine inside a statement. It is spooled to a file, and
the statement is rewritten to read that file: `FORMAT X <data>` becomes `FROM INFILE`, and
`input('structure')` becomes `file('<path>', 'X', 'structure')`. What cannot be rewritten is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Final

from telemetry_pipeline.warehouse.embedded.errors import QueryError, bad_argument, syntax_error
from telemetry_pipeline.warehouse.embedded.lexer import Kind, Token, Unfinished, tokens


class Action(Enum):
    """How the engine has to run a statement."""

    SELECT = "rows can be streamed"
    INSERT_DATA = "insert the data that follows the head"
    INSERT_INPUT = "insert a select over input(), the data follows the head"
    KILL = "kill queries"
    OTHER = "anything else"


@dataclass(frozen=True)
class Statement:
    """One statement, told apart from the data that may follow it."""

    action: Action
    sql: bytes
    """The statement itself, without data."""
    words: tuple[str, ...] = ()
    """Its first two keywords, for access checks."""
    output_format: str | None = None
    """The FORMAT of a statement with output, or None if it names none."""
    data_start: int | None = None
    """Where in the given text the data begins; None for a statement without data."""
    input_format: str | None = None
    """The FORMAT of that data."""
    splice: tuple[int, int, int] = (0, 0, 0)
    """Where the data's file is put into `sql`; see `with_data_file`."""

    @property
    def takes_data(self) -> bool:
        """Whether the request's body is rows rather than SQL."""
        return self.data_start is not None

    def with_data_file(self, path: str) -> bytes:
        """The statement over a file with the data, in a form the engine runs as a server would."""
        literal = quote(path)
        start, end, tail = self.splice
        if self.action is Action.INSERT_DATA:
            source = b" FROM INFILE " + literal + b" COMPRESSION 'none' "
            format_clause = b" FORMAT " + str(self.input_format).encode()
            return self.sql[:start] + source + self.sql[start:tail] + format_clause
        if self.action is Action.INSERT_INPUT:
            format_literal = quote(str(self.input_format))
            call = b"file(" + literal + b", " + format_literal + b", "
            return self.sql[:start] + call + self.sql[end:tail]
        raise ValueError(f"a statement of kind {self.action.name} takes no data")


def quote(text: str) -> bytes:
    """`text` as a ClickHouse string literal."""
    return b"'" + text.encode().replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"


def parse(text: bytes, *, complete: bool) -> Statement | None:
    """The statement at the start of `text`, or None while more of the text is needed.

    Raises `QueryError` for what a server refuses too (several statements, files of the client) and
    for every use of `input()` that cannot be given its data.
    """
    reader = _Reader(text, complete=complete)
    try:
        return _statement(reader)
    except Unfinished:
        if not complete:
            return None
        raise syntax_error("A quote or a comment is not closed") from None


def table_functions_in(sql: bytes) -> set[str]:
    """Lower-case names of everything `sql` calls like a function."""
    names: set[str] = set()
    previous: Token | None = None
    for token in tokens(sql, complete=True):
        if token.is_symbol("(") and previous and previous.kind in (Kind.WORD, Kind.QUOTED):
            names.add(previous.value.lower())
        previous = token
    return names


def names_in(sql: bytes) -> list[str]:
    """Lower-case words and quoted names of `sql`, in order."""
    return [
        token.value.lower()
        for token in tokens(sql, complete=True)
        if token.kind in (Kind.WORD, Kind.QUOTED)
    ]


def rename_identifier(sql: bytes, name: str, replacement: bytes) -> bytes:
    """`sql` with every identifier `name`, quoted or not, replaced.

    The name of a parameter, as in `{name:String}`, is no identifier.
    """
    pieces: list[bytes] = []
    position = 0
    in_parameter = False
    for token in tokens(sql, complete=True):
        is_name = token.kind in (Kind.WORD, Kind.QUOTED) and token.value.lower() == name
        if is_name and not in_parameter:
            pieces += [sql[position : token.start], replacement]
            position = token.end
        in_parameter = token.is_symbol("{")
    return b"".join([*pieces, sql[position:]])


class _Reader:
    """The tokens of a text, read on demand, with the nesting depth each is at."""

    def __init__(self, text: bytes, *, complete: bool) -> None:
        self.text = text
        self.complete = complete
        self.read: list[Token] = []
        self.depths: list[int] = []
        self._source = tokens(text, complete=complete)
        self._lowered = text.lower()
        self._depth = 0

    def at(self, index: int) -> Token | None:
        """Token number `index`, None after the last one."""
        if index < len(self.read):
            return self.read[index]
        for token in self._source:
            self._keep(token)
            if index < len(self.read):
                return token
        if not self.complete:
            raise Unfinished
        return None

    def all(self) -> Sequence[Token]:
        """Every token; raises `Unfinished` while more text may come."""
        if not self.complete:
            raise Unfinished
        for token in self._source:
            self._keep(token)
        return self.read

    def has(self, word: bytes) -> bool:
        """Whether the text has these letters anywhere: a quick check before a slow one."""
        return word in self._lowered

    def _keep(self, token: Token) -> None:
        symbol = token.value if token.kind is Kind.SYMBOL else " "
        if symbol in ")]}":
            self._depth -= 1
        self.read.append(token)
        self.depths.append(self._depth)
        if symbol in "([{":
            self._depth += 1

    def first_words(self) -> tuple[str, ...]:
        """The first two keywords read so far."""
        return tuple(token.value for token in self.read[:2] if token.kind is Kind.WORD)

    def after_group(self, index: int) -> int:
        """The index after the closing partner of the opening bracket at `index`."""
        depth = self.depths[index]
        index += 1
        while (token := self.at(index)) is not None:
            if self.depths[index] == depth and token.is_symbol(")"):
                return index + 1
            index += 1
        return index


def _statement(reader: _Reader) -> Statement:
    first = reader.at(0)
    if first is None or first.is_symbol(";"):
        raise syntax_error("Empty query")
    insert_at = _place_of_insert(reader)
    if insert_at is not None:
        return _insert(reader, insert_at)
    every = reader.all()
    _refuse_client_files(reader)
    _refuse_several(every)
    suspicious = reader.has(b"input") or reader.has(b"\\")
    if suspicious and any(_is_input_call(reader, index) for index in range(len(every))):
        raise QueryError(
            477, "INVALID_USAGE_OF_INPUT", "input() must be used only in INSERT SELECT query."
        )
    if first.is_word("KILL"):
        action = Action.KILL
    elif first.is_word("SELECT", "WITH"):
        action = Action.SELECT
    else:
        action = Action.OTHER
    return Statement(
        action,
        _without_semicolon(reader.text, every),
        words=reader.first_words(),
        output_format=_output_format(reader),
    )


def _place_of_insert(reader: _Reader) -> int | None:
    """The index of INSERT in `INSERT INTO ...` or `WITH ... INSERT INTO ...`, else None.

    It reads no further than it must: what follows an INSERT may be data and not SQL.
    """
    index = 0
    while (token := reader.at(index)) is not None:
        if reader.depths[index] == 0:
            if token.is_word("INSERT"):
                return index
            if token.is_word("SELECT") or (index == 0 and not token.is_word("WITH")):
                return None
        index += 1
    return None


def _insert(reader: _Reader, index: int) -> Statement:
    """INSERT INTO [TABLE] [FUNCTION] name [(columns)] ... up to what says where rows come from."""
    insert_at = index
    index = _after_target(reader, index + 1)
    token = reader.at(index)
    if token is not None and token.is_symbol("(") and not _opens_select(reader, index):
        index = reader.after_group(index)
    settings_at: int | None = None
    while (token := reader.at(index)) is not None:
        if reader.depths[index] > 0:
            index += 1
            continue
        if token.is_word("SETTINGS"):
            settings_at = token.start
        elif token.is_word("VALUES"):
            at = token.start if settings_at is None else settings_at
            return _insert_data(reader, "Values", at, token.start, token.end)
        elif token.is_word("FORMAT"):
            return _insert_format(reader, index, settings_at)
        elif token.is_word("FROM"):
            following = reader.at(index + 1)
            if following is not None and following.is_word("INFILE"):
                raise _client_file("FROM INFILE")
            return _insert_select(reader, insert_at, index)
        elif token.is_word("SELECT", "WITH", "WATCH", "EXPLAIN") or token.is_symbol("("):
            return _insert_select(reader, insert_at, index)
        elif token.is_symbol(";"):
            break
        index += 1
    raise syntax_error("INSERT needs VALUES, FORMAT or SELECT")


def _after_target(reader: _Reader, index: int) -> int:
    """The index after `INTO [TABLE] name[.name]` or `INTO [TABLE] FUNCTION name(...)`."""
    token = reader.at(index)
    if token is None or not token.is_word("INTO", "OVERWRITE"):
        raise syntax_error("INSERT must be followed by INTO")
    index += 1
    token, following = reader.at(index), reader.at(index + 1)
    if token is not None and token.is_word("TABLE") and _starts_name(following):
        index += 1
        token, following = following, reader.at(index + 1)
    if token is not None and token.is_word("FUNCTION") and _starts_name(following):
        opening = reader.at(index + 2)
        if opening is not None and opening.is_symbol("("):
            return reader.after_group(index + 2)
    index = _after_name_part(reader, index)
    while (token := reader.at(index)) is not None and token.is_symbol("."):
        index = _after_name_part(reader, index + 1)
    return index


def _after_name_part(reader: _Reader, index: int) -> int:
    """The index after a name, which may be a parameter: `{table:Identifier}`."""
    token = reader.at(index)
    if token is None or not token.is_symbol("{"):
        return index + 1
    while (token := reader.at(index)) is not None and not token.is_symbol("}"):
        index += 1
    return index + 1


def _starts_name(token: Token | None) -> bool:
    """Whether a name follows, so that TABLE or FUNCTION was a keyword and not the table's name."""
    if token is None or token.is_word("VALUES", "FORMAT", "SELECT", "SETTINGS", "WITH", "FROM"):
        return False
    return token.kind in (Kind.WORD, Kind.QUOTED) or token.is_symbol("{")


def _opens_select(reader: _Reader, index: int) -> bool:
    while (token := reader.at(index)) is not None and token.is_symbol("("):
        index += 1
    return token is not None and token.is_word("SELECT", "WITH", "FROM")


def _insert_format(reader: _Reader, index: int, settings_at: int | None) -> Statement:
    keyword, name = reader.read[index], reader.at(index + 1)
    if name is None or name.kind not in (Kind.WORD, Kind.QUOTED):
        raise syntax_error("FORMAT must be followed by the name of a format")
    splice_at = keyword.start if settings_at is None else settings_at
    data_start = _data_start(reader, name)
    return _insert_data(reader, _raw_name(reader, name), splice_at, keyword.start, data_start)


def _insert_data(
    reader: _Reader, input_format: str, splice_at: int, head_end: int, data_start: int
) -> Statement:
    return Statement(
        Action.INSERT_DATA,
        reader.text[:head_end],
        words=reader.first_words(),
        data_start=data_start,
        input_format=input_format,
        splice=(splice_at, splice_at, head_end),
    )


def _insert_select(reader: _Reader, insert_at: int, index: int) -> Statement:
    """An INSERT SELECT: over `input()`, then data follows its FORMAT; else the text is all SQL."""
    calls = [call for call in range(insert_at) if _is_input_call(reader, call)]
    while reader.at(index) is not None:
        if _is_input_call(reader, index):
            calls.append(index)
        if calls and _is_format_clause(reader, index):
            return _insert_input(reader, calls, index)
        index += 1
    if calls:
        raise bad_argument(
            "INSERT SELECT from input() must end with FORMAT and the name of the data's format"
        )
    _refuse_client_files(reader)
    _refuse_several(reader.read)
    return Statement(
        Action.OTHER, _without_semicolon(reader.text, reader.read), words=reader.first_words()
    )


def _insert_input(reader: _Reader, calls: Sequence[int], format_index: int) -> Statement:
    if len(calls) > 1:
        raise bad_argument("input() can be used only once in a query")
    (call,) = calls
    opening, first_argument = reader.read[call + 1], reader.read[call + 2]
    before = reader.read[call - 1]
    if not (before.is_word("FROM", "JOIN") or before.is_symbol(",")):
        raise bad_argument("input() must be the table of a FROM or JOIN")
    if first_argument.is_symbol(")"):
        raise bad_argument("input() needs the structure of the data, as in input('x String')")
    name = reader.at(format_index + 1)
    assert name is not None  # _is_format_clause has seen it
    keyword = reader.read[format_index]
    _refuse_several(reader.read[:format_index])
    return Statement(
        Action.INSERT_INPUT,
        reader.text[: keyword.start],
        words=reader.first_words(),
        data_start=_data_start(reader, name),
        input_format=_raw_name(reader, name),
        splice=(reader.read[call].start, opening.end, keyword.start),
    )


def _is_input_call(reader: _Reader, index: int) -> bool:
    """Whether token `index` is `input` before an opening bracket, whatever its case and quoting."""
    token = reader.at(index)
    if token is None or token.kind not in (Kind.WORD, Kind.QUOTED):
        return False
    hidden = token.kind is Kind.QUOTED and b"\\" in reader.text[token.start : token.end]
    if token.value.lower() != "input" and not hidden:
        return False
    following = reader.at(index + 1)
    calls = following is not None and following.is_symbol("(")
    if calls and hidden:
        raise bad_argument("A function's name must not be written with escapes")
    return calls


# After these words a name follows, so that FORMAT there is a column and not the clause.
_EXPECTS_EXPRESSION: Final = frozenset(
    (
        "SELECT",
        "DISTINCT",
        "ALL",
        "FROM",
        "JOIN",
        "ON",
        "USING",
        "WHERE",
        "PREWHERE",
        "HAVING",
        "QUALIFY",
        "BY",
        "AND",
        "OR",
        "NOT",
        "IN",
        "LIKE",
        "ILIKE",
        "BETWEEN",
        "AS",
        "WHEN",
        "THEN",
        "ELSE",
        "CASE",
        "IS",
        "LIMIT",
        "OFFSET",
        "WITH",
        "UNION",
        "EXCEPT",
        "INTERSECT",
        "ANY",
    )
)
# A column called format, without AS, is followed by one of these rather than by a format's name.
_NOT_A_FORMAT: Final = frozenset(
    (
        "FROM",
        "AS",
        "WHERE",
        "PREWHERE",
        "GROUP",
        "ORDER",
        "HAVING",
        "LIMIT",
        "UNION",
        "JOIN",
        "SETTINGS",
        "AND",
        "OR",
        "IN",
        "IS",
        "FORMAT",
    )
)


def _is_format_clause(reader: _Reader, index: int) -> bool:
    """Whether token `index` begins `FORMAT Name` at the end of a query."""
    token = reader.read[index]
    if not token.is_word("FORMAT") or reader.depths[index] != 0 or index == 0:
        return False
    before = reader.read[index - 1]
    if before.kind is Kind.WORD and before.value in _EXPECTS_EXPRESSION:
        return False
    if before.kind is Kind.SYMBOL and before.value not in ")]}*":
        return False
    name = reader.at(index + 1)
    if name is None or name.kind not in (Kind.WORD, Kind.QUOTED):
        return False
    return not (name.kind is Kind.WORD and name.value in _NOT_A_FORMAT)


def _data_start(reader: _Reader, name: Token) -> int:
    """Data begins after blanks and one line break behind the format's name, as on a server."""
    text, position = reader.text, name.end
    while text[position : position + 1] in (b" ", b"\t", b"\f") and position < len(text):
        position += 1
    if position >= len(text) and not reader.complete:
        raise Unfinished
    if text[position : position + 1] == b";":
        raise syntax_error("You have excessive ';' symbol before data for INSERT")
    if text[position : position + 1] == b"\r":
        if position + 1 >= len(text) and not reader.complete:
            raise Unfinished
        position += 1
    if text[position : position + 1] == b"\n":
        position += 1
    return position


def _raw_name(reader: _Reader, name: Token) -> str:
    raw = name.value if name.kind is Kind.QUOTED else reader.text[name.start : name.end].decode()
    if not raw.isidentifier():
        raise QueryError(73, "UNKNOWN_FORMAT", f"Unknown format {raw}")
    return raw


def _output_format(reader: _Reader) -> str | None:
    """The name after the last FORMAT outside brackets, if the statement ends with that clause."""
    for index in range(len(reader.read) - 2, 0, -1):
        if reader.read[index].value == "FORMAT" and _is_format_clause(reader, index):
            after = reader.at(index + 2)
            if after is None or after.is_symbol(";") or after.is_word("SETTINGS"):
                return _raw_name(reader, reader.read[index + 1])
    return None


def _refuse_several(every: Sequence[Token]) -> None:
    for token, following in pairwise(every):
        if token.value == ";" and token.is_symbol(";") and not following.is_symbol(";"):
            raise syntax_error("Multi-statements are not allowed")


def _refuse_client_files(reader: _Reader) -> None:
    if not reader.has(b"outfile") and not reader.has(b"infile"):
        return
    for token, following in pairwise(reader.read):
        if token.is_word("INTO") and following.is_word("OUTFILE"):
            raise _client_file("INTO OUTFILE")
        if token.is_word("FROM") and following.is_word("INFILE"):
            raise _client_file("FROM INFILE")


def _client_file(clause: str) -> QueryError:
    return bad_argument(f"{clause} is for command-line clients and is not allowed over HTTP")


def _without_semicolon(text: bytes, every: Sequence[Token]) -> bytes:
    if every and every[-1].is_symbol(";"):
        first = len(every) - 1
        while first > 0 and every[first - 1].is_symbol(";"):
            first -= 1
        return text[: every[first].start]
    return text
