"""`telemetry ingest` with small slices and short deadlines; test_exactly_once.py kills it.

Arguments: bytes a slice, seconds until a claim's deadline, seconds an insert may run.
"""

from __future__ import annotations

import sys
from functools import partial

from telemetry_pipeline import cli
from telemetry_pipeline.ingest import ledger, loader, run
from telemetry_pipeline.sources.otel_file import OtelFileSource


def main() -> None:
    slice_bytes, deadline, insert = map(int, sys.argv[1:])
    run.OtelFileSource = partial(OtelFileSource, slice_bytes=slice_bytes)  # type: ignore[misc,assignment]
    ledger.DEADLINE_SECONDS = deadline
    ledger.INSERT_SECONDS = loader.INSERT_SECONDS = insert
    ledger.CLOCK_MARGIN_SECONDS = 0
    cli.main(["ingest", "--json"])


if __name__ == "__main__":
    main()
