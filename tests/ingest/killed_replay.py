"""`telemetry dlq …` with small slices and short deadlines; test_dead_letters.py kills it.

Arguments: letters a slice, seconds until a claim's deadline, then those of `telemetry dlq`.
"""

from __future__ import annotations

import sys
from functools import partial

from telemetry_pipeline import cli
from telemetry_pipeline.ingest import ledger, loader, run
from telemetry_pipeline.sources.dead_letters import DeadLetterSource


def main() -> None:
    items, deadline, *arguments = sys.argv[1:]
    run.DeadLetterSource = partial(DeadLetterSource, slice_items=int(items))  # type: ignore[misc,assignment]
    ledger.DEADLINE_SECONDS = int(deadline)
    ledger.INSERT_SECONDS = loader.INSERT_SECONDS = 3
    ledger.CLOCK_MARGIN_SECONDS = 0
    cli.main(["dlq", *arguments])


if __name__ == "__main__":
    main()
