"""ClickHouse's tokens, as far as the front has to tell code from strings and comments.

One pass, no backtracking: every token is found by searching forward for its end, so a hostile or
binary text costs time in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """What a token is. White space and comments are not tokens."""

    WORD = "bare word"
    QUOTED = "quoted identifier"
    STRING = "string"
    NUMBER = "number"
    SYMBOL = "symbol"


@dataclass(frozen=True)
class Token:
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


_SPACE: Final = re.compile(rb"[ \t\n\r\f\v]+")
_WORD: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_$]*")
_NUMBER: Final = re.compile(rb"[0-9][0-9A-Za-z_.]*")
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
    position = start
    while position < len(text):
        after_blank = _skip_blank(text, position, complete=complete)
        if after_blank != position:
            position = after_blank
            continue
        token = _token_at(text, position)
        if token.end == len(text) and not complete:
            raise Unfinished
        yield token
        position = token.end


def _skip_blank(text: bytes, position: int, *, complete: bool) -> int:
    if space := _SPACE.match(text, position):
        return space.end()
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


def _token_at(text: bytes, position: int) -> Token:
    first = text[position : position + 1]
    if word := _WORD.match(text, position):
        return Token(Kind.WORD, position, word.end(), word.group().decode().upper())
    if number := _NUMBER.match(text, position):
        return Token(Kind.NUMBER, position, number.end(), number.group().decode())
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
