"""ClickHouse's tokens, as far as the front has to tell code from strings and comments.

One pass, no backtracking: every token is found by searching forward for its end, so a hostile or
binary text costs time in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple


class Kind(Enum):
    """What a token is. White space and comments are not tokens."""

    WORD = "bare word"
    QUOTED = "quoted identifier"
    STRING = "string"
    NUMBER = "number"
    SYMBOL = "symbol"


class Token(NamedTuple):
    """`text[start:end]` of the lexed bytes."""

    kind: Kind
    start: int
    end: int
    value: str
    """Upper case for a word, the bare name for a quoted identifier, the character of a symbol."""

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these keywords, unquoted."""
        return self.kind is Kind.WORD and self.value in words

    def is_symbol(self, symbol: str) -> bool:
        """Whether it is this one character."""
        return self.kind is Kind.SYMBOL and self.value == symbol


class Unfinished(Exception):
    """The text ends inside a token: the rest has not arrived, or a quote is not closed."""


# What most of a text consists of, in one match: blanks, words, numbers, strings without escapes,
# and symbols that begin nothing longer. Possessive, so that it never backtracks.
_COMMON: Final = re.compile(
    rb"([ \t\n\r\f\v]++)|([A-Za-z_][A-Za-z0-9_$]*+)|([0-9][0-9A-Za-z_.]*+)"
    rb"|('[^'\\]*+'(?!'))|([(),.;=+*<>\[\]{}:?|%@!])"
)
_COMMON_KINDS: Final = (None, None, Kind.WORD, Kind.NUMBER, Kind.STRING, Kind.SYMBOL)
_HEREDOC_TAG: Final = re.compile(rb"\$[A-Za-z0-9_]*\$")
_TYPOGRAPHIC: Final = {
    b"\xe2\x80\x98": (Kind.STRING, b"\xe2\x80\x99"),
    b"\xe2\x80\x9c": (Kind.QUOTED, b"\xe2\x80\x9d"),
}


def tokens(text: bytes, *, complete: bool, start: int = 0) -> Iterator[Token]:
    """The tokens of `text` from `start`.

    With `complete=False` more bytes may follow, so a token that touches the end raises
    `Unfinished`; an open quote or comment raises it in any case.
    """
    position, length = start, len(text)
    while position < length:
        if common := _COMMON.match(text, position):
            end = common.end()
            kind = _COMMON_KINDS[common.lastindex or 0]
            if kind is None:
                position = end
                continue
            value = "" if kind is Kind.STRING else common.group().decode("ascii")
            token = Token(kind, position, end, value.upper() if kind is Kind.WORD else value)
        else:
            after_comment = _after_comment(text, position, complete=complete)
            if after_comment != position:
                position = after_comment
                continue
            token = _rare_token(text, position)
        if token.end == length and not complete:
            raise Unfinished
        yield token
        position = token.end


def _after_comment(text: bytes, position: int, *, complete: bool) -> int:
    """The position after a comment that begins here, else the same position."""
    pair = text[position : position + 2]
    if pair == b"/*":
        end = text.find(b"*/", position + 2)
        if end < 0:
            raise Unfinished
        return end + 2
    if pair == b"--" or pair in (b"# ", b"#!"):
        end = text.find(b"\n", position)
        if end < 0 and not complete:
            raise Unfinished
        return len(text) if end < 0 else end + 1
    return position


def _rare_token(text: bytes, position: int) -> Token:
    first = text[position : position + 1]
    if first == b"'":
        return Token(Kind.STRING, position, _end_of_quoted(text, position), "")
    if first in (b'"', b"`"):
        end = _end_of_quoted(text, position)
        return Token(Kind.QUOTED, position, end, _unquote(text[position:end]))
    if first == b"$" and (tag := _HEREDOC_TAG.match(text, position)):
        return _heredoc(text, position, tag.group())
    if typographic := _TYPOGRAPHIC.get(text[position : position + 3]):
        kind, closing = typographic
        end = text.find(closing, position + 3)
        if end < 0:
            raise Unfinished
        inner = text[position + 3 : end].decode("utf-8", "replace")
        return Token(kind, position, end + 3, inner if kind is Kind.QUOTED else "")
    return Token(Kind.SYMBOL, position, position + 1, first.decode("latin-1"))


def _heredoc(text: bytes, position: int, tag: bytes) -> Token:
    end = text.find(tag, position + len(tag))
    if end < 0:
        raise Unfinished
    return Token(Kind.STRING, position, end + len(tag), "")


def _end_of_quoted(text: bytes, position: int) -> int:
    quote = text[position : position + 1]
    stop = _STOPS[quote]
    cursor = position + 1
    while match := stop.search(text, cursor):
        cursor = match.end()
        escapes_next = match.group() == b"\\"
        if not escapes_next and text[cursor : cursor + 1] != quote:
            return cursor
        cursor += 1
    raise Unfinished


_STOPS: Final = {quote: re.compile(rb"[\\" + quote + rb"]") for quote in (b"'", b'"', b"`")}


def _unquote(quoted: bytes) -> str:
    quote = quoted[:1]
    inner = quoted[1:-1].replace(quote * 2, quote)
    return re.sub(rb"\\(.)", rb"\1", inner).decode("utf-8", "replace")
