"""A process that ingests one source and says what that cost it; `ours.py` starts it.

Prints `ready` when everything is imported, waits for a line on stdin, then prints a line of
progress for each slice and at last what it did as JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path

from bench.ingest.processes import peak_rss_mb
from telemetry_pipeline.ingest.loader import IngestReport
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project

_NO_LIMIT = 1 << 62


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--source", required=True)
    given = parser.parse_args()
    project = Project(root=given.root, data_dir=given.data_dir)
    print("ready", flush=True)
    sys.stdin.readline()
    before = _cpu()
    report = ingest(project, given.source, "bench", max_bytes=_NO_LIMIT, on_slice=_say)
    figures = {
        "cpu_s": _cpu() - before,
        "startup_cpu_s": before,
        "rss_mb": peak_rss_mb(),
        "slices": report.slices,
        "received": report.received,
        "accepted": report.accepted,
        "bytes": report.bytes,
        "waiting": report.waiting,
    }
    print(json.dumps(figures), flush=True)


def _say(report: IngestReport) -> None:
    print(f"progress {report.received}", flush=True)


def _cpu() -> float:
    """User and system time of this process and of the children it has waited for."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (
            resource.getrusage(resource.RUSAGE_SELF),
            resource.getrusage(resource.RUSAGE_CHILDREN),
        )
    )


if __name__ == "__main__":
    main()
