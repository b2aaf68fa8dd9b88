"""One run worker: ingest() over and over for one source, struck where the driver says.

`python -m chaos.worker SOURCE SERIAL`. Commands come on stdin, one JSON object a line: {"arm":
{"edge": …, "countdown": …, "delay": …, "how": "kill" | "stop" | "warehouse"}}, {"disarm": true},
{"end": true}. It says on stdout what it does, one JSON object a line, each with its time "t". The
end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos import limits
from chaos.edges import BY_NAME, Trap, Traps
from chaos.sabotage import sabotage
from telemetry_pipeline.ingest.ledger import Ledger
from telemetry_pipeline.ingest.run import ingest
from telemetry_pipeline.paths import Project, find_project
from telemetry_pipeline.warehouse import embedded

_PAUSE_IDLE, _PAUSE_FAILED = 0.3, 0.4
#: How long a watch for the first filled target may go on.
_WATCH_SECONDS = 3.0


def main() -> None:
    source, serial = sys.argv[1:]
    project = find_project()
    limits.apply()
    sabotage(os.environ.get("CHAOS_BREAK", ""))
    traps = Traps()
    ended = threading.Event()
    listener = threading.Thread(target=_listen, args=(project, traps, ended), daemon=True)
    _announce()
    listener.start()
    number = 0
    while not ended.is_set():
        number += 1
        run_id = f"{source}-{serial}-{number}"
        say("run", run_id=run_id)
        try:
            report = ingest(project, source, run_id)
        except Exception as error:
            # Whatever it was: a run that failed is followed by another, as the sensor does it.
            kind = f"{type(error).__module__}.{type(error).__name__}"
            say("failed", kind=kind, text=str(error)[:4000])
            ended.wait(_PAUSE_FAILED)
            continue
        say("ran", slices=report.slices, recovered=report.recovered, waiting=report.waiting)
        if not report.slices:
            ended.wait(_PAUSE_IDLE)
    say("ended")


def say(what: str, **more: Any) -> None:
    """One line to the driver; written whole, so that a kill right after leaves it readable."""
    line = json.dumps({"t": time.time(), "what": what} | more) + "\n"
    os.write(1, line.encode())


def _listen(project: Project, traps: Traps, ended: threading.Event) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        if "arm" in command:
            traps.arm(_trap(project, **command["arm"]))
        elif "disarm" in command:
            traps.disarm()
        else:
            break
    ended.set()


def _trap(project: Project, *, edge: str, countdown: int, delay: float, how: str) -> Trap:
    def strike_self() -> None:
        say("edge", edge=edge, how=how)
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)

    def strike_warehouse() -> None:
        _kill_warehouse_between_targets(project, edge)

    strike = strike_warehouse if how == "warehouse" else strike_self
    return Trap(BY_NAME[edge], countdown, delay, strike)


def _kill_warehouse_between_targets(project: Project, edge: str) -> None:
    """Wait until one of the insert's targets has a new part on disk, then kill at once."""
    endpoint = embedded.read_endpoint(project.warehouse_dir)
    folders = _part_folders(project)
    before = {folder: _parts(folder) for folder in folders}
    ends = time.monotonic() + _WATCH_SECONDS
    while endpoint is not None and time.monotonic() < ends:
        for folder in folders:
            if _parts(folder) - before[folder]:
                say("edge", edge=edge, how="warehouse")
                os.kill(endpoint.pid, signal.SIGKILL)
                return
    say("missed", edge=edge)


def _part_folders(project: Project) -> list[Path]:
    """Where the targets' parts lie: the driver wrote the list down after the tables were made."""
    listed = (project.data_dir / limits.PART_FOLDERS).read_text(encoding="utf-8")
    return [Path(line) for line in listed.splitlines()]


def _parts(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if not name.startswith(("tmp", "delete", "."))}


def _announce() -> None:
    """Say every claim that is owned (the driver times its strikes by it) and every removal."""
    claim_it: Callable[..., Any] = Ledger.claim
    remove_it: Callable[..., Any] = Ledger.remove

    def claim(self: Ledger, *args: Any, **named: Any) -> Any:
        owned = claim_it(self, *args, **named)
        if owned is not None:
            say("claim")
        return owned

    def remove(self: Ledger, *args: Any, **named: Any) -> Any:
        say("removal")
        return remove_it(self, *args, **named)

    Ledger.claim = claim  # type: ignore[method-assign]
    Ledger.remove = remove  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
