"""Killed at any point, an export loses no event and repeats none at the destination."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import pytest
from exporting import Event, Receiver, Warehouse, export

from telemetry_pipeline.warehouse.client import Address

Server = Callable[..., AbstractContextManager[Receiver]]

USER = 0xDEADBEEF_12345678
SCRIPT = Path(__file__).with_name("killed_export.py")


def start_export(address: Address, receiver: Receiver, point: str) -> subprocess.Popen[bytes]:
    """An export in a process of its own that dies at `point`, or when the test kills it."""
    process = subprocess.Popen([sys.executable, SCRIPT], stdin=subprocess.PIPE)
    task = {"address": asdict(address), "endpoint": receiver.endpoint, "point": point}
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(json.dumps(task).encode())
    return process


@pytest.mark.parametrize(
    ("point", "arrived", "recognised"),
    [("before the request", 10, 0), ("after the answer", 20, 10)],
)
def test_killed_between_sending_and_its_record(
    warehouse: Warehouse,
    migrated: Address,
    amplitude_server: Server,
    point: str,
    arrived: int,
    recognised: int,
) -> None:
    warehouse.land([Event(user=USER + n) for n in range(50)])
    with amplitude_server() as receiver:
        assert start_export(migrated, receiver, point).wait(30) == -9
        assert receiver.summary()["stored"] == arrived
        # The second request was on record before it could leave.
        assert warehouse.states() == {"accepted": 10, "sending": 10}
        report = export(warehouse, receiver)
        summary = receiver.summary()
    assert (report.due, report.resent, report.accepted) == (40, 10, 40)
    assert summary["events"] == summary["stored"] == 50
    assert summary["duplicates"] == recognised
    assert warehouse.states() == {"accepted": 50}


def test_killed_while_the_server_has_the_request_but_not_yet_answered(
    warehouse: Warehouse, migrated: Address, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER + n) for n in range(50)])
    with amplitude_server(script=("ok", "timeout_accepted"), timeout_seconds=3) as receiver:
        process = start_export(migrated, receiver, "")
        _wait_until(lambda: receiver.summary()["stored"] == 20)
        process.kill()
        assert process.wait(10) == -9
        report = export(warehouse, receiver)
        summary = receiver.summary()
    assert (report.accepted, report.resent) == (40, 10)
    assert summary["events"] == summary["stored"] == 50
    assert summary["duplicates"] == 10


def test_killed_again_and_again_at_random_with_a_server_that_fails(
    warehouse: Warehouse, migrated: Address, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER + n % 50) for n in range(600)])
    dice = random.Random(7)
    with amplitude_server(accepted_5xx_rate=0.1, unavailable_rate=0.1) as receiver:
        for _ in range(4):
            before = receiver.summary()["requests"]
            process = start_export(migrated, receiver, "")
            _wait_until_requests(receiver, before + dice.randint(1, 12))
            process.kill()
            process.wait(10)
        assert 0 < receiver.summary()["events"] < 600
        export(warehouse, receiver)
        summary = receiver.summary()
    assert summary["events"] == summary["stored"] == 600
    assert warehouse.states() == {"accepted": 600}


def _wait_until_requests(receiver: Receiver, requests: int) -> None:
    _wait_until(lambda: receiver.summary()["requests"] >= requests)


def _wait_until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends, "it never came to that"
        time.sleep(0.005)
