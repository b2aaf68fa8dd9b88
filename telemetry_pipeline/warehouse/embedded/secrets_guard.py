"""Keeps the values of query parameters out of what the server says about a failure."""

from __future__ import annotations

from collections.abc import Mapping

from telemetry_pipeline.warehouse.embedded.errors import QueryError

_HIDDEN = "[HIDDEN]"
_MARK_IN_NAME = "secret"
# A shorter value could be any word of a message, and hides nothing worth hiding.
_SHORTEST_HIDDEN = 6


def without_values(error: QueryError, parameters: Mapping[str, str]) -> QueryError:
    """`error` with the values of parameters replaced.

    A parameter with `secret` in its name is hidden whatever its length; a failure to parse one is
    reported by name only, since the engine quotes the parts it could read.
    """
    message = error.message
    secret_names = [name for name in parameters if _MARK_IN_NAME in name.lower()]
    for name in secret_names:
        if error.code == 457 and f"'{name}'" in message:
            message = f"The value of query parameter '{name}' does not fit its declared type."
            return QueryError(error.code, error.name, message)
    for name, value in sorted(parameters.items(), key=lambda item: -len(item[1])):
        if not value or (name not in secret_names and len(value) < _SHORTEST_HIDDEN):
            continue
        for spelling in _spellings(value):
            message = message.replace(spelling, _HIDDEN)
    return QueryError(error.code, error.name, message)


def _spellings(value: str) -> list[str]:
    """The ways the engine writes a value: as sent, unescaped, and escaped again in a literal."""
    unescaped = value
    for escape, character in (("\\t", "\t"), ("\\n", "\n"), ("\\'", "'"), ("\\\\", "\\")):
        unescaped = unescaped.replace(escape, character)
    escaped = unescaped.replace("\\", "\\\\").replace("'", "\\'")
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t")
    return sorted({value, unescaped, escaped}, key=len, reverse=True)
