"""A process that posts requests to an OTLP/HTTP receiver over several connections; `peers.py`
starts it, and its CPU is nobody's.

Prints `progress <n>` ten times on the way, and at last how many requests were taken.
"""

from __future__ import annotations

import argparse
import http.client
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from bench.ingest.dataset import read_requests

_TRY_AGAIN = (429, 502, 503, 504)


class Sender:
    """Posts what `requests` gives; a request that is refused for now is sent again."""

    def __init__(self, url: str, requests: Iterator[bytes], say_every: int) -> None:
        self._url = urlsplit(url)
        self._requests = requests
        self._say_every = say_every
        self._lock = threading.Lock()
        self.taken = 0
        self.failures: list[str] = []

    def run(self) -> None:
        assert self._url.hostname is not None
        connection = http.client.HTTPConnection(self._url.hostname, self._url.port, timeout=120)
        try:
            while not self.failures and (request := self._next()) is not None:
                self._post(connection, request)
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
        finally:
            connection.close()

    def _next(self) -> bytes | None:
        with self._lock:
            return next(self._requests, None)

    def _count(self) -> None:
        with self._lock:
            self.taken += 1
            if self.taken % self._say_every == 0:
                print(f"progress {self.taken}", flush=True)

    def _post(self, connection: http.client.HTTPConnection, request: bytes) -> None:
        while True:
            connection.request(
                "POST", self._url.path, request, {"content-type": "application/x-protobuf"}
            )
            answer = connection.getresponse()
            said = answer.read()
            if answer.status == 200:
                self._count()
                return
            if answer.status not in _TRY_AGAIN:
                self.failures.append(f"{answer.status}: {said[:200]!r}")
                return
            time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    given = parser.parse_args()
    requests = islice(read_requests(given.file), given.requests)
    sender = Sender(given.url, requests, say_every=max(1, given.requests // 10))
    threads = [threading.Thread(target=sender.run) for _ in range(given.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sender.taken, *sender.failures[:1], flush=True)
    return 1 if sender.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
