"""Redis streams on a real server that fsyncs every write: one ProductTelemetryBatch an entry."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

import redis
from services.process import Service, accepts, free_port

from chaos.events import Event
from chaos.sinks.wire import PayloadKeys, batches_of
from telemetry_pipeline.errors import TelemetryError

PREFIX = "product-telemetry"
_URL_VARIABLE = "CHAOS_REDIS_URL"
_PATIENCE = 120.0
_Entry = tuple[bytes, dict[bytes, bytes]]


class ChaosRedis:
    """An entry is added until its addition was acknowledged: it may then stand there twice."""

    name = "chaos_redis"
    has_service = True

    def __init__(self, folder: Path, payload_keys: PayloadKeys) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise TelemetryError("chaos: redis-server is not on PATH; apt-get install redis-server")
        folder.mkdir(parents=True)
        self._payload_keys = payload_keys
        self._port = port = free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._server = Service(command, folder / "redis.log", lambda: accepts(port))
        self._client = redis.Redis("127.0.0.1", port, socket_timeout=10)

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": "redis_stream", "url": f"env:{_URL_VARIABLE}", "prefix": PREFIX}

    @property
    def variables(self) -> dict[str, str]:
        return {_URL_VARIABLE: f"redis://127.0.0.1:{self._port}/0"}

    def start(self) -> None:
        self._server.start()

    def write(self, batch: Sequence[Event]) -> None:
        for organisation, document in batches_of(batch, self._payload_keys):
            self._add(f"{PREFIX}:{organisation}:events", json.dumps(document))

    def copy_back(self, rng: Random) -> None:
        """Nothing goes back under its old id."""

    def kill(self) -> None:
        self._server.kill()

    def restart(self) -> None:
        self._server.start()

    def deliveries(self) -> Counter[str] | None:
        found: Counter[str] = Counter()
        for stream in self._client.scan_iter(f"{PREFIX}:*:events"):
            for fields in self._entries(stream):
                found.update(event["eventId"] for event in json.loads(fields[b"batch"])["events"])
        return found

    def close(self) -> None:
        self._client.close()
        self._server.kill()

    def _add(self, stream: str, text: str) -> None:
        ends = time.monotonic() + _PATIENCE
        while True:
            try:
                self._client.xadd(stream, {"batch": text})
                return
            except redis.RedisError:  # gone, or still loading what it had
                if time.monotonic() > ends:
                    raise
                time.sleep(0.1)

    def _entries(self, stream: bytes) -> Iterator[dict[bytes, bytes]]:
        cursor = "-"
        while page := cast("list[_Entry]", self._client.xrange(stream, cursor, "+", count=200)):
            for _, fields in page:
                yield fields
            cursor = f"({page[-1][0].decode()}"
