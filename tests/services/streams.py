"""A Redis server, and just enough of its protocol to talk to it without a client library."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.process import Service, accepts, free_port


class Redis(Service):
    """Keeps nothing on disk, or with `durable` every write before it is acknowledged."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--dir", str(folder)]
        command += ["--appendonly", "yes" if durable else "no", "--appendfsync", "always"]
        super().__init__(command, folder / "redis.log", lambda: accepts(self.port))

    def say(self, *words: str) -> str:
        """The answer to one command, as it stands on the wire, without the last line end."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(w.encode())}\r\n{w}\r\n" for w in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request.encode())
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        return answer.decode().removesuffix("\r\n")


@contextmanager
def running_redis(folder: Path, *, durable: bool = False) -> Iterator[Redis]:
    server = Redis(folder, durable=durable)
    server.start()
    try:
        yield server
    finally:
        server.stop()
