"""`python -m telemetry_pipeline.warehouse.embedded`: the server as a process of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from telemetry_pipeline.warehouse.embedded import EmbeddedWarehouseError, Endpoint, serve


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped; 1 and one line on stderr if that cannot be."""
    parser = argparse.ArgumentParser(description="Serve the embedded warehouse over HTTP.")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the database")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--max-memory-bytes", type=int, help="default: 60 %% of the machine")
    given = parser.parse_args(arguments)
    try:
        serve(
            given.data_dir,
            given.host,
            given.port,
            max_memory_bytes=given.max_memory_bytes,
            on_ready=_announce,
        )
    except EmbeddedWarehouseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _announce(endpoint: Endpoint) -> None:
    print(f"warehouse ready on {endpoint.url}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
