"""The two kinds of failure: the server cannot start, and a query has no result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from telemetry_pipeline.errors import TelemetryError


class EmbeddedWarehouseError(TelemetryError):
    """The embedded warehouse cannot start or cannot go on; the message is one line for a person."""

    exit_code = 5


class QueryError(Exception):
    """A ClickHouse exception as a client sees it: code, upper-case name and message."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message} ({name})")
        self.code = code
        self.name = name
        self.message = message

    @property
    def text(self) -> str:
        """The line ClickHouse writes for it."""
        return str(self)

    @property
    def http_status(self) -> int:
        """The status ClickHouse's HTTP interface answers with for this code."""
        return _STATUS_BY_CODE.get(self.code, 500)


# ClickHouse's own table from exception code to HTTP status; everything else is a 500.
_STATUS_BY_CODE: Final[Mapping[int, int]] = {
    **dict.fromkeys((194,), 401),
    **dict.fromkeys((192, 193, 512, 516), 403),
    **dict.fromkeys((6, 26, 27, 36, 38, 41, 43, 53, 62, 69, 72, 117, 167, 168, 170, 427), 400),
    **dict.fromkeys((44, 45, 46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 149, 372), 404),
    159: 408,
    381: 411,
    307: 413,
    48: 501,
    **dict.fromkeys((76, 209), 503),
}

_PREFIX: Final = re.compile(r"\ACode: (\d+)\. DB::Exception: ")
_NAME: Final = re.compile(r" \(([A-Z][A-Z0-9_]*)\)\s*\Z")
_VERSION: Final = re.compile(r" \(version [^()]*(?:\([^()]*\))?\)\.?\s*\Z")


def from_engine(text: str) -> QueryError:
    """The engine's exception text as a `QueryError`, with repeated wrapping taken off.

    The in-process engine wraps one exception in up to three copies of
    `Code: N. DB::Exception: ... (NAME) (version V)`; a server writes it once.
    """
    code, name = 0, ""
    while match := _PREFIX.match(text):
        code = code or int(match.group(1))
        text = _VERSION.sub("", text[match.end() :])
        if found := _NAME.search(text):
            name = name or found.group(1)
            text = text[: found.start()]
        text = _VERSION.sub("", text)
    if code == 0:
        return QueryError(1002, "UNKNOWN_EXCEPTION", text.strip())
    return QueryError(code, name or "UNKNOWN_EXCEPTION", text.strip())


def syntax_error(message: str) -> QueryError:
    """Code 62."""
    return QueryError(62, "SYNTAX_ERROR", message)


def bad_argument(message: str) -> QueryError:
    """Code 36."""
    return QueryError(36, "BAD_ARGUMENTS", message)


def not_supported(message: str) -> QueryError:
    """Code 48: something a server can do and the embedded warehouse cannot."""
    return QueryError(48, "NOT_IMPLEMENTED", message)


def access_denied(message: str) -> QueryError:
    """Code 497."""
    return QueryError(497, "ACCESS_DENIED", message)
