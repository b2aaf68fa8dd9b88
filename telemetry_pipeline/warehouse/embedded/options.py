"""What a request asks for beside its SQL: the meaning of URL parameters and headers."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from telemetry_pipeline.warehouse.embedded.errors import (
    QueryError,
    bad_argument,
    not_supported,
    syntax_error,
)

MAX_SESSION_TIMEOUT_SECONDS: Final = 3600
_DEFAULT_SESSION_TIMEOUT_SECONDS: Final = 60
_SETTING_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_PARAMETER_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

# Parameters of the transport that the embedded server can leave without effect.
_WITHOUT_EFFECT: Final = frozenset(("buffer_size", "quota_key", "stacktrace", "user", "password"))
_UNSUPPORTED_WHEN_ON: Final = {
    "compress": "ClickHouse's own block compression of answers; use Accept-Encoding",
    "decompress": "ClickHouse's own block compression of bodies; use Content-Encoding",
}


@dataclass(frozen=True)
class SessionRequest:
    """The session a request wants to run in."""

    session_id: str
    timeout_seconds: int
    must_exist: bool
    close_after: bool


@dataclass(frozen=True)
class Options:
    """A request's parameters, sorted by who has to act on them."""

    query: bytes
    query_id: str
    database: str | None = None
    default_format: str | None = None
    session: SessionRequest | None = None
    wait_end_of_query: bool = False
    compress_answer: bool = False
    protocol_revision: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_options(
    pairs: Iterable[tuple[str, str]],
    headers: Mapping[str, str],
    form_pairs: Iterable[tuple[str, str]] = (),
) -> Options:
    """The options in a URL's parameters, then in a form's fields, with lower-case `headers`.

    Every name that the HTTP interface does not reserve is a setting, as on a server.
    """
    query: list[str] = []
    reserved: dict[str, str] = {}
    settings: dict[str, str] = {}
    parameters: dict[str, str] = {}
    for name, value in [*pairs, *form_pairs]:
        if name == "query":
            query.append(value)
        elif name.startswith("param_"):
            parameters[_checked(_PARAMETER_NAME, name.removeprefix("param_"))] = value
        elif name in _RESERVED:
            reserved[name] = value
        elif name in _UNSUPPORTED_WHEN_ON:
            if _is_on(value):
                raise not_supported(f"{name}: {_UNSUPPORTED_WHEN_ON[name]}")
        elif name == "role":
            raise not_supported("role: the embedded warehouse has its two users and no other role")
        elif name not in _WITHOUT_EFFECT:
            settings[_checked(_SETTING_NAME, name)] = value
    return Options(
        query="\n".join(query).encode(),
        query_id=reserved.get("query_id") or str(uuid.uuid4()),
        database=reserved.get("database") or headers.get("x-clickhouse-database") or None,
        default_format=reserved.get("default_format") or headers.get("x-clickhouse-format") or None,
        session=_session(reserved),
        wait_end_of_query=_is_on(reserved.get("wait_end_of_query", "0")),
        compress_answer=_is_on(settings.get("enable_http_compression", "0")),
        protocol_revision=_protocol_revision(reserved.get("client_protocol_version", "0")),
        settings=settings,
        parameters=parameters,
    )


_RESERVED: Final = frozenset(
    (
        "query_id",
        "database",
        "default_format",
        "session_id",
        "session_timeout",
        "session_check",
        "close_session",
        "wait_end_of_query",
        "client_protocol_version",
    )
)


def credentials(pairs: Iterable[tuple[str, str]], headers: Mapping[str, str]) -> tuple[str, str]:
    """User and password from X-ClickHouse-User/Key, Basic authorization or the URL."""
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user") or "default", headers.get("x-clickhouse-key", "")
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "default", ""
        return name, password
    in_url = dict(pairs)
    return in_url.get("user") or "default", in_url.get("password", "")


def set_statement(settings: Mapping[str, str]) -> bytes:
    """One SET statement for checked setting names. `settings` must not be empty."""
    return b"SET " + b", ".join(
        name.encode() + b" = " + quote_setting(value) for name, value in settings.items()
    )


def quote_setting(value: str) -> bytes:
    """A setting's value as a string literal, which the engine converts to the setting's type."""
    return b"'" + value.encode().replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"


def _protocol_revision(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise bad_argument(f"client_protocol_version must be a number, not '{text}'")
    return int(text)


def _session(reserved: Mapping[str, str]) -> SessionRequest | None:
    session_id = reserved.get("session_id")
    if not session_id:
        return None
    text = reserved.get("session_timeout", str(_DEFAULT_SESSION_TIMEOUT_SECONDS))
    if not text.isascii() or not text.isdigit():
        raise QueryError(374, "INVALID_SESSION_TIMEOUT", f"Invalid session timeout: '{text}'")
    timeout = int(text)
    if timeout > MAX_SESSION_TIMEOUT_SECONDS:
        raise QueryError(
            374,
            "INVALID_SESSION_TIMEOUT",
            f"Session timeout '{timeout}' is larger than max_session_timeout: "
            f"{MAX_SESSION_TIMEOUT_SECONDS}. Maximum session timeout could be modified in "
            "configuration file.",
        )
    return SessionRequest(
        session_id,
        timeout,
        must_exist=_is_on(reserved.get("session_check", "0")),
        close_after=_is_on(reserved.get("close_session", "0")),
    )


def _checked(pattern: re.Pattern[str], name: str) -> str:
    if not pattern.match(name):
        raise bad_argument("A URL parameter has a name that is neither a setting nor a parameter")
    return name


def _is_on(value: str) -> bool:
    return value.strip().lower() not in ("", "0", "false")


def checked_utf8(text: bytes) -> str:
    """`text` as a string, or the error a client can act on."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise syntax_error("The query is not valid UTF-8") from None
