"""`telemetry ingest` of a Redis source with small slices; test_redis_ingest.py kills it.

Arguments: entries a slice, seconds until a claim's deadline, seconds an insert may run, and whether
it is to be killed as soon as the ledger has a result, before the group is told (0 or 1).
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import Any

from telemetry_pipeline import cli
from telemetry_pipeline.ingest import ledger, loader, run
from telemetry_pipeline.sources.redis_stream import RedisStreamSource


def main() -> None:
    entries, deadline, insert, dies = map(int, sys.argv[1:])
    if dies:
        RedisStreamSource.acknowledge = _die  # type: ignore[method-assign]
    run.RedisStreamSource = partial(RedisStreamSource, slice_entries=entries)  # type: ignore[misc,assignment]
    ledger.DEADLINE_SECONDS = deadline
    ledger.INSERT_SECONDS = loader.INSERT_SECONDS = insert
    ledger.CLOCK_MARGIN_SECONDS = 0
    cli.main(["ingest", "--json"])


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
