"""An export process that kills itself at a given point; run by test_export_crash.py.

Reads a JSON object from stdin: address of the warehouse, endpoint and point.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence

from exporting import API_KEY, Warehouse, connect, export_through

from telemetry_pipeline.destinations.amplitude import Amplitude, AmplitudeSettings
from telemetry_pipeline.destinations.base import Answer, NoAnswer, WireEvent
from telemetry_pipeline.warehouse.client import Address


class Killed(Amplitude):
    """Dies with SIGKILL at `point` of its second request."""

    point = ""
    requests = 0

    def send(self, events: Sequence[WireEvent]) -> Answer | NoAnswer:
        self.requests += 1
        if self.requests == 2 and self.point == "before the request":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = super().send(events)
        if self.requests == 2 and self.point == "after the answer":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


def main() -> None:
    task = json.load(sys.stdin)
    Killed.point = task["point"]
    settings = AmplitudeSettings(
        api_key=API_KEY,
        endpoint=task["endpoint"],
        events_per_second=None,
        device_events_per_second=None,
        events_per_request=10,
    )
    with Killed(settings) as amplitude:
        export_through(Warehouse(connect(Address(**task["address"]))), amplitude)


if __name__ == "__main__":
    main()
