"""A local server with Amplitude's documented HTTP V2 rules, for the demo and the tests.

It takes the same requests as Amplitude, gives the same answers, deduplicates as it does, and shows
what it received: a page at `/`, JSON at `/received` and `/received/summary`. Loopback only.
Where the documentation leaves a choice, the stricter reading is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import html
import ipaddress
import json
import os
import random
import socket
import sqlite3
import string
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from telemetry_pipeline.errors import TelemetryError

API_PATH = "/2/httpapi"
MAX_EVENTS = 2000
MAX_BYTES = 1_000_000
MAX_READ = 64_000_000  # more than this is not even read to its end
MAX_STRING = 1024
MAX_DEPTH = 40
MIN_ID_LENGTH = 5
EVENTS_PER_SECOND = 30
DEDUPLICATION_SECONDS = 7 * 24 * 3600
FORBIDDEN_IDS = frozenset(
    {
        *("anonymous", "nil", "none", "null", "n/a", "na", "undefined", "unknown"),
        *("true", "false", "{}", "[]", "0", "-1", "00000000-0000-0000-0000-000000000000"),
    }
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY,
    device_id TEXT NOT NULL,
    insert_id TEXT NOT NULL,
    user_id TEXT,
    event_type TEXT NOT NULL,
    time_ms INTEGER,
    received_at REAL NOT NULL,
    event_json TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_id ON events (device_id, insert_id, received_at);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""

_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Faults:
    """What goes wrong on purpose. Rates are shares of requests, 0 to 1.

    `script` is used up first, one entry a request: "ok", a status (500, 502, 503, 504 or 429,
    nothing taken), a status + "_accepted" (the events were taken), "timeout" and
    "timeout_accepted" (an answer only after `timeout_seconds`), "reset" and "reset_accepted" (the
    answer breaks off).
    """

    script: tuple[str, ...] = ()
    accepted_5xx_rate: float = 0.0
    unavailable_rate: float = 0.0
    throttle_rate: float = 0.0
    timeout_rate: float = 0.0
    timeout_seconds: float = 60.0
    retry_after: str | None = None
    refused_event_types: frozenset[str] = frozenset()
    silenced_devices: frozenset[str] = frozenset()
    seed: int = 0

    @classmethod
    def from_environment(cls, variables: Mapping[str, str]) -> Faults:
        """The rates from AMPLITUDE_SERVER_ACCEPTED_5XX_RATE, _UNAVAILABLE_RATE, _THROTTLE_RATE,
        _TIMEOUT_RATE, _TIMEOUT_SECONDS and _FAULT_SEED. Raises TelemetryError for no number."""

        def number(name: str, default: float) -> float:
            text = variables.get(f"AMPLITUDE_SERVER_{name}")
            try:
                return default if text is None else float(text)
            except ValueError:
                raise TelemetryError(f"AMPLITUDE_SERVER_{name} must be a number") from None

        return cls(
            accepted_5xx_rate=number("ACCEPTED_5XX_RATE", 0.0),
            unavailable_rate=number("UNAVAILABLE_RATE", 0.0),
            throttle_rate=number("THROTTLE_RATE", 0.0),
            timeout_rate=number("TIMEOUT_RATE", 0.0),
            timeout_seconds=number("TIMEOUT_SECONDS", 60.0),
            seed=int(number("FAULT_SEED", 0)),
        )


@dataclass(frozen=True)
class ServerSettings:
    """Where the server keeps its state, which key it takes, and its limits.

    `events_per_second` counts for one device or user over `throttle_window` seconds; None switches
    throttling off.
    """

    state_dir: Path
    api_key: str = field(repr=False)
    events_per_second: int | None = EVENTS_PER_SECOND
    throttle_window: float = 1.0
    faults: Faults = Faults()
    clock: Callable[[], float] = time.time


class Store:
    """What was received, in SQLite, so that a restart still knows the last seven days."""

    def __init__(self, state_dir: Path, clock: Callable[[], float]) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._lock = threading.Lock()
        self._database = sqlite3.connect(state_dir / "received.sqlite", check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing; a machine that loses power may lose the last answers.
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def take(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Store the events not seen on their device in seven days; returns how many were new."""
        now = self._clock()
        rows: list[tuple[object, ...]] = []
        fresh: set[tuple[str, str]] = set()
        with self._lock, self._database:
            for event in events:
                device = _device_of(event)
                # Without an insert_id an event is never a duplicate.
                insert_id = event.get("insert_id") or f"none:{random.getrandbits(128):032x}"
                if (device, insert_id) in fresh or self._is_known(device, insert_id, now):
                    continue
                fresh.add((device, insert_id))
                rows.append(
                    (
                        device,
                        insert_id,
                        event.get("user_id"),
                        event["event_type"],
                        event.get("time"),
                        now,
                        json.dumps(event, ensure_ascii=True, separators=(",", ":")),
                    )
                )
            self._database.executemany(
                "INSERT INTO events (device_id, insert_id, user_id, event_type, time_ms, "
                "received_at, event_json) VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._add("duplicates", len(events) - len(rows))
        return len(rows)

    def count_request(self) -> None:
        with self._lock, self._database:
            self._add("requests", 1)

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The newest events first, each with `received_at` in ISO 8601."""
        with self._lock:
            rows = self._database.execute(
                "SELECT event_json, received_at FROM events ORDER BY number DESC LIMIT ?", (limit,)
            ).fetchall()
        return [{**json.loads(text), "received_at": _iso(at)} for text, at in rows]

    def summary(self) -> dict[str, Any]:
        """Distinct insert_ids, stored events (the same unless deduplication failed or its seven
        days passed), requests, duplicates dropped, events by type."""
        with self._lock:
            events, stored = self._database.execute(
                "SELECT count(DISTINCT insert_id), count(*) FROM events"
            ).fetchone()
            by_type = self._database.execute(
                "SELECT event_type, count(DISTINCT insert_id) FROM events GROUP BY 1 ORDER BY 1"
            ).fetchall()
            counters = dict(self._database.execute("SELECT name, value FROM counters").fetchall())
        return {
            "events": events,
            "stored": stored,
            "requests": counters.get("requests", 0),
            "duplicates": counters.get("duplicates", 0),
            "by_type": dict(by_type),
        }

    def _is_known(self, device: str, insert_id: str, now: float) -> bool:
        row = self._database.execute(
            "SELECT 1 FROM events "
            "WHERE device_id = ? AND insert_id = ? AND received_at > ? LIMIT 1",
            (device, insert_id, now - DEDUPLICATION_SECONDS),
        ).fetchone()
        return row is not None

    def _add(self, name: str, value: int) -> None:
        self._database.execute(
            "INSERT INTO counters VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, value),
        )


class Throttle:
    """Events of each device and each user over a sliding window."""

    def __init__(self, limit: int | None, window: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._window = window
        self._clock = clock
        self._seen: dict[tuple[str, str], deque[tuple[float, int]]] = {}

    def judge(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Amplitude's 429 body when a device or user is too fast, else None, and they count."""
        if self._limit is None:
            return None
        now = self._clock()
        counts: Counter[tuple[str, str]] = Counter()
        for event in events:
            for kind in ("device_id", "user_id"):
                if event.get(kind):
                    counts[(kind, event[kind])] += 1
        rates = {who: count + self._recent(who, now) for who, count in counts.items()}
        allowed = self._limit * self._window
        too_fast = {who: rate for who, rate in rates.items() if rate > allowed}
        if not too_fast:
            for who, count in counts.items():
                self._seen.setdefault(who, deque()).append((now, count))
            return None
        return {
            "code": 429,
            "error": "Too many requests for some devices and users",
            "eps_threshold": self._limit,
            "throttled_devices": {
                who: rate for (kind, who), rate in too_fast.items() if kind == "device_id"
            },
            "throttled_users": {
                who: rate for (kind, who), rate in too_fast.items() if kind == "user_id"
            },
            "throttled_events": [
                index
                for index, event in enumerate(events)
                if ("device_id", event.get("device_id")) in too_fast
                or ("user_id", event.get("user_id")) in too_fast
            ],
        }

    def _recent(self, who: tuple[str, str], now: float) -> int:
        seen = self._seen.get(who)
        if not seen:
            return 0
        while seen and seen[0][0] <= now - self._window:
            seen.popleft()
        return sum(count for _, count in seen)


def find_problem(document: object, faults: Faults) -> dict[str, Any] | None:
    """Amplitude's 400 body for a request that breaks a rule (not its key or its size), else None.

    As HTTP V2 does, it names only the first bad event for each field.
    """
    if not isinstance(document, dict):
        return _bad_request("Invalid JSON request body")
    events = document.get("events")
    if not isinstance(events, list) or not events:
        return _bad_request("Request missing required field", missing_field="events")
    options = document.get("options")
    min_length = options.get("min_id_length") if isinstance(options, dict) else None
    if type(min_length) is not int or min_length < 1:
        min_length = MIN_ID_LENGTH
    missing: dict[str, list[int]] = {}
    invalid: dict[str, list[int]] = {}
    lengths: dict[str, list[int]] = {}
    silenced: list[int] = []
    for index, event in enumerate(events):
        if not isinstance(event, dict):
            invalid.setdefault("event", [index])
            continue
        _check_event(event, index, min_length, missing, invalid, lengths)
        if event.get("event_type") in faults.refused_event_types:
            invalid.setdefault("event_type", [index])
        if event.get("device_id") in faults.silenced_devices:
            silenced.append(index)
    if not (missing or invalid or lengths or silenced):
        return None
    body = _bad_request(
        "Invalid id length for user_id or device_id"
        if lengths and not (missing or invalid)
        else "Invalid field values on some events"
    )
    if missing:
        body["events_with_missing_fields"] = missing
    if invalid:
        body["events_with_invalid_fields"] = invalid
    if lengths:
        body["events_with_invalid_id_lengths"] = lengths
    if silenced:
        body["silenced_events"] = silenced
        body["silenced_devices"] = sorted({events[index]["device_id"] for index in silenced})
    return body


def _check_event(
    event: Mapping[str, Any],
    index: int,
    min_length: int,
    missing: dict[str, list[int]],
    invalid: dict[str, list[int]],
    lengths: dict[str, list[int]],
) -> None:
    event_type = event.get("event_type")
    if event_type is None or event_type == "":
        missing.setdefault("event_type", [index])
    elif not _is_text(event_type) or len(event_type) > MAX_STRING:
        invalid.setdefault("event_type", [index])
    if not event.get("user_id") and not event.get("device_id"):
        missing.setdefault("user_id", [index])
    for name in ("user_id", "device_id"):
        value = event.get(name)
        if value in (None, ""):
            continue
        if not _is_text(value) or value.lower() in FORBIDDEN_IDS or not value.strip("0-"):
            invalid.setdefault(name, [index])
        elif len(value) < min_length:
            lengths.setdefault(name, [index])
    moment = event.get("time")
    # Before 2000 or after 2100: seconds or nanoseconds in the place of milliseconds.
    if moment is not None and not (
        type(moment) is int and 946_684_800_000 <= moment <= 4_102_444_800_000
    ):
        invalid.setdefault("time", [index])
    session = event.get("session_id")
    if session is not None and not (type(session) is int and session >= -1):
        invalid.setdefault("session_id", [index])
    if event.get("insert_id") is not None and not _is_text(event["insert_id"]):
        invalid.setdefault("insert_id", [index])
    for name in ("event_properties", "user_properties", "groups"):
        value = event.get(name)
        if value is not None and not (isinstance(value, dict) and _is_acceptable(value, MAX_DEPTH)):
            invalid.setdefault(name, [index])


def _is_text(value: object) -> TypeGuard[str]:
    # JSON can spell half a surrogate pair, which no UTF-8 can hold.
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _is_acceptable(value: object, depth: int) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_STRING
    if isinstance(value, dict):
        return depth > 0 and all(_is_acceptable(item, depth - 1) for item in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_acceptable(item, depth - 1) for item in value)
    return True


def _bad_request(error: str, **more: str) -> dict[str, Any]:
    return {"code": 400, "error": error, **more}


def create_app(settings: ServerSettings) -> Starlette:
    """The ASGI application. Its state lives in `settings.state_dir`."""
    store = Store(settings.state_dir, settings.clock)
    throttle = Throttle(settings.events_per_second, settings.throttle_window, settings.clock)
    faults = settings.faults
    script = deque(faults.script)
    dice = random.Random(faults.seed)

    def next_fault() -> str:
        if script:
            return script.popleft()
        roll = dice.random()
        for name, rate in (
            (
                dice.choice(("500_accepted", "502_accepted", "504_accepted")),
                faults.accepted_5xx_rate,
            ),
            ("503", faults.unavailable_rate),
            ("429", faults.throttle_rate),
            ("timeout_accepted" if dice.random() < 0.5 else "timeout", faults.timeout_rate),
        ):
            if roll < rate:
                return name
            roll -= rate
        return "ok"

    async def receive(request: Request) -> Response:
        body = await _read_body(request)
        await asyncio.to_thread(store.count_request)
        if body is None:
            return JSONResponse({"code": 413, "error": "Payload too large"}, 413)
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return JSONResponse(_bad_request("Invalid JSON request body"), 400)
        if (refusal := _refuse_key(document, settings.api_key)) is not None:
            return JSONResponse(refusal, 400)
        events = document.get("events")
        if isinstance(events, list) and len(events) > MAX_EVENTS:
            return JSONResponse({"code": 413, "error": "Payload too large"}, 413)
        if (problem := find_problem(document, faults)) is not None:
            return JSONResponse(problem, 400)
        fault, _, taken_anyway = next_fault().partition("_")
        if fault == "ok":
            throttled = throttle.judge(events)
            if throttled is not None:
                return JSONResponse(throttled, 429)
        if fault == "ok" or taken_anyway:
            await asyncio.to_thread(store.take, events)
        if fault == "ok":
            return JSONResponse(
                {
                    "code": 200,
                    "events_ingested": len(events),
                    "payload_size_bytes": len(body),
                    "server_upload_time": int(settings.clock() * 1000),
                }
            )
        return await _fail(fault, faults)

    async def received(request: Request) -> Response:
        text = request.query_params.get("limit", "100")
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 100_000:
            return JSONResponse({"error": "limit must be a number from 1 to 100000"}, 400)
        return JSONResponse(await asyncio.to_thread(store.latest, int(text)))

    async def summary(_: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(store.summary))

    async def page(_: Request) -> Response:
        totals = await asyncio.to_thread(store.summary)
        events = await asyncio.to_thread(store.latest, 100)
        return HTMLResponse(render_page(totals, events), headers=_PAGE_HEADERS)

    @asynccontextmanager
    async def close_at_the_end(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            store.close()

    return Starlette(
        routes=[
            Route("/", page),
            Route(API_PATH, receive, methods=["POST"]),
            Route("/received", received),
            Route("/received/summary", summary),
        ],
        # A page of another site cannot reach this server under a name of its own.
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
        ],
        lifespan=close_at_the_end,
    )


async def _read_body(request: Request) -> bytes | None:
    """The body, or None when it is over Amplitude's size limit."""
    body = bytearray()
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MAX_READ:
                return None
            # What is too large is read on, so that the client is there for the answer.
            if size <= MAX_BYTES:
                body += part
    except ClientDisconnect:
        return None
    return bytes(body) if size <= MAX_BYTES else None


def _refuse_key(document: object, expected: str) -> dict[str, Any] | None:
    if not isinstance(document, dict):
        return _bad_request("Invalid JSON request body")
    key = document.get("api_key")
    if key is None:
        return _bad_request("Request missing required field", missing_field="api_key")
    if not hmac.compare_digest(str(key).encode(errors="replace"), expected.encode()):
        # Amplitude repeats the key it was given.
        return _bad_request(f"Invalid API key: {key}")
    return None


async def _fail(fault: str, faults: Faults) -> Response:
    headers = {"retry-after": faults.retry_after} if faults.retry_after is not None else None
    if fault == "timeout":
        await asyncio.sleep(faults.timeout_seconds)
        return JSONResponse({"code": 504, "error": "timeout"}, 504)
    if fault == "reset":
        return _BrokenOff()
    if fault == "429":
        body = {"code": 429, "error": "Too many requests", "eps_threshold": EVENTS_PER_SECOND}
        return JSONResponse(body, 429, headers)
    return JSONResponse({"code": int(fault), "error": "switched on"}, int(fault), headers)


class _BrokenOff(Response):
    """An answer whose connection ends before its body does."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"100"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


def render_page(totals: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """The page at `/`: totals, events by type, the newest events. Everything is escaped."""
    by_type = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{count:,}</td></tr>"
        for name, count in totals["by_type"].items()
    )
    rows = "".join(_page_row(event) for event in events)
    template = (resources.files(__package__) / "amplitude_received.html").read_text("utf-8")
    return string.Template(template).substitute(
        events=f"{totals['events']:,}",
        requests=f"{totals['requests']:,}",
        duplicates=f"{totals['duplicates']:,}",
        by_type=by_type or "<tr><td colspan=2>nothing yet</td></tr>",
        rows=rows or "<tr><td colspan=6>nothing yet</td></tr>",
        shown=f"{len(events):,}",
    )


def _page_row(event: Mapping[str, Any]) -> str:
    moment = event.get("time")
    groups = event.get("groups") or {}
    cells = (
        _iso(moment / 1000) if moment is not None else "",
        event["event_type"],
        event.get("user_id") or "",
        ", ".join(f"{kind} {name}" for kind, name in groups.items()),
        json.dumps(event.get("event_properties") or {}, ensure_ascii=False),
        event.get("insert_id") or "",
    )
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _device_of(event: Mapping[str, Any]) -> str:
    # Amplitude makes a device of the user where none is named.
    return event.get("device_id") or f"user:{event['user_id']}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def serve(
    host: str,
    port: int,
    state_dir: Path,
    api_key: str,
    *,
    events_per_second: int | None = EVENTS_PER_SECOND,
    faults: Faults = Faults(),
) -> None:
    """Serve until SIGTERM or SIGINT. Raises TelemetryError for another host than this machine's
    loopback, an empty key, and a port in use."""
    settings = ServerSettings(state_dir, api_key, events_per_second, faults=faults)
    with _bind(host, port, api_key) as listener:
        uvicorn.Server(_uvicorn_config(settings)).run(sockets=[listener])


@contextmanager
def running(settings: ServerSettings, port: int = 0) -> Iterator[str]:
    """The server in a thread of this process, for tests: yields `http://127.0.0.1:<port>`."""
    with _bind("127.0.0.1", port, settings.api_key) as listener:
        server = uvicorn.Server(_uvicorn_config(settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def _uvicorn_config(settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(settings),
        # Uvicorn logs tracebacks of the answers that break off on purpose.
        log_level="critical",
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=2,
    )


@contextmanager
def _bind(host: str, port: int, api_key: str) -> Iterator[socket.socket]:
    if not api_key:
        raise TelemetryError("the Amplitude server needs a key: set AMPLITUDE_API_KEY")
    address = "127.0.0.1" if host == "localhost" else host
    try:
        version = ipaddress.ip_address(address)
    except ValueError:
        raise TelemetryError(f"{host} is not an address; use 127.0.0.1") from None
    if not version.is_loopback:
        raise TelemetryError(f"the Amplitude server listens on loopback only, not on {host}")
    family = socket.AF_INET6 if version.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            reason = error.strerror or "not possible"
            raise TelemetryError(f"cannot listen on {host}:{port}: {reason}") from None
        yield listener


def main() -> None:
    """`python -m telemetry_pipeline.demo.amplitude_server`; the key is AMPLITUDE_API_KEY's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8091)
    parser.add_argument("--state-dir", type=Path, required=True, help="where received events lie")
    parser.add_argument("--no-throttling", action="store_true", help="take any rate of events")
    arguments = parser.parse_args()
    try:
        serve(
            arguments.host,
            arguments.port,
            arguments.state_dir,
            os.environ.get("AMPLITUDE_API_KEY", ""),
            events_per_second=None if arguments.no_throttling else EVENTS_PER_SECOND,
            faults=Faults.from_environment(os.environ),
        )
    except TelemetryError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
