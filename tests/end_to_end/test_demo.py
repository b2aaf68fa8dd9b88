"""The whole product as a person starts it: one command, real parts, figures that agree."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fresh import REPOSITORY, empty_warehouse

from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import connect, is_external

#: Few enough to be quick, enough for the bad records to stay below one in twenty.
EVENTS = "12000"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Installation:
    """A data folder of its own beside this checkout's code."""

    project: Project

    @property
    def variables(self) -> dict[str, str]:
        return os.environ | {
            "TELEMETRY_ROOT": str(self.project.root),
            "TELEMETRY_DATA_DIR": str(self.project.data_dir),
        }

    def telemetry(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "telemetry_pipeline.cli", *arguments],
            cwd=REPOSITORY,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def demo(self) -> dict[str, object]:
        port = str(free_port())
        done = self.telemetry(
            "demo", "--once", "--json", "--events", EVENTS, "--amplitude-port", port
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class TwoRuns:
    installation: Installation
    first: dict[str, object]
    second: dict[str, object]
    marts_before: dict[str, str]
    marts_after: dict[str, str]
    left_running: list[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> TwoRuns:
    """The demo twice on one data folder; nothing new arrives in between."""
    data = tmp_path_factory.mktemp("demo") / "data"
    installation = Installation(Project(root=REPOSITORY, data_dir=data))
    if is_external():
        with closing(connect(installation.project)) as client:
            empty_warehouse(client)
    first = installation.demo()
    before = contents_of_marts(installation)
    second = installation.demo()
    after = contents_of_marts(installation)
    return TwoRuns(installation, first, second, before, after, processes_of(data))


@contextmanager
def warehouse_of(installation: Installation) -> Iterator[Project]:
    """The installation's warehouse, served the way a person would serve it."""
    if is_external():
        yield installation.project
        return
    server = subprocess.Popen(
        [sys.executable, "-m", "telemetry_pipeline.cli", "warehouse", "serve", "--json"],
        cwd=REPOSITORY,
        env=installation.variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["host"] == "127.0.0.1"
        yield installation.project
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=20)
        assert server.returncode == 0


def contents_of_marts(installation: Installation) -> dict[str, str]:
    """A hash over all rows of every mart, whatever their order."""
    with (
        warehouse_of(installation) as project,
        closing(connect(project, role="reader")) as client,
    ):
        names = client.query("SELECT name FROM system.tables WHERE database = 'marts'").result_rows
        return {
            name: str(
                client.query(
                    f"SELECT count(), groupBitXor(cityHash64(tuple(*))) FROM marts.{name}"
                ).result_rows[0]
            )
            for (name,) in names
        }


def processes_of(data: Path) -> list[str]:
    """Command lines of processes that were started for this data folder and still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            if str(data).encode() in environment and int(entry.name) != os.getpid():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def total(values: object) -> int:
    assert isinstance(values, dict)
    return sum(values.values())


def test_every_emitted_record_is_accounted_for(runs: TwoRuns) -> None:
    first = runs.first
    assert first["received"] == first["emitted"]
    assert first["received"] == (
        int(str(first["accepted"]))
        + int(str(first["duplicates"]))
        + total(first["rejected"])
        + total(first["dropped"])
    )
    assert first["new"] == first["received"]
    assert first["raw_rows"] == first["accepted"]


def test_each_kind_of_bad_record_was_met(runs: TwoRuns) -> None:
    """Otherwise the sums above would prove little."""
    assert set(runs.first["rejected"]) == {  # type: ignore[call-overload]
        *("undecodable", "not_logs", "unknown_event", "raw_identifier"),
        *("invalid_attribute", "missing_attribute", "event_id_conflict"),
    }
    assert set(runs.first["dropped"]) == {  # type: ignore[call-overload]
        *("not_an_event", "consent_absent", "consent_denied", "expired"),
    }


def test_the_allowlisted_events_and_no_others_reached_amplitude(runs: TwoRuns) -> None:
    assert runs.first["amplitude_events"] == runs.first["amplitude_due"]
    assert int(str(runs.first["amplitude_due"])) > 0


def test_every_mart_has_rows_and_no_check_failed(runs: TwoRuns) -> None:
    marts, checks = runs.first["marts"], runs.first["checks"]
    assert isinstance(marts, dict)
    assert isinstance(checks, dict)
    assert len(marts) >= 9
    assert all(marts.values())
    assert checks["failed"] == 0
    assert checks["passed"] >= 30


def test_a_second_run_with_nothing_new_ingests_nothing_and_changes_no_mart(runs: TwoRuns) -> None:
    assert runs.second["new"] == 0
    assert {**runs.second, "seconds": 0, "new": 0} == {**runs.first, "seconds": 0, "new": 0}
    assert runs.marts_before == runs.marts_after


def test_nothing_is_left_running(runs: TwoRuns) -> None:
    assert runs.left_running == []


def test_nothing_was_written_outside_the_data_folder(runs: TwoRuns) -> None:
    status = subprocess.run(
        [
            "git",
            "status",
            "--porcelain",
            "--ignored",
            "--",
            "logs",
            ".logs_queue",
            "history",
            "storage",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert status.stdout == ""


def test_no_key_and_no_address_is_in_what_was_written(runs: TwoRuns) -> None:
    """The emitted canaries and every key of the installation, looked for in all it wrote."""
    data = runs.installation.project.data_dir
    keys = [
        file.read_text().strip().split(":")[1].encode() for file in (data / "keys").glob("*.key")
    ]
    assert len(keys) == 5
    canary = b"canary-"
    sink = b"".join(file.read_bytes() for file in (data / "sink").iterdir())
    assert canary in sink, "the control: what was emitted does hold canaries"
    for folder in ("warehouse", "logs", "dagster", "dbt"):
        for file in (data / folder).rglob("*"):
            if not file.is_file():
                continue
            written = file.read_bytes()
            assert canary not in written, file
            for key in keys:
                assert key not in written, file
                assert bytes.fromhex(key.decode()) not in written, file


def test_dbt_build_and_dbt_test_run_on_their_own(runs: TwoRuns) -> None:
    """As typed: eval "$(telemetry env)", cd dbt_project, dbt build, dbt test."""
    with warehouse_of(runs.installation):
        exported = json.loads(runs.installation.telemetry("env", "--json").stdout)
        for command in ("build", "test"):
            done = subprocess.run(
                [Path(sys.executable).with_name("dbt"), command],
                cwd=REPOSITORY / "dbt_project",
                env=runs.installation.variables | exported,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stdout[-3000:]
            assert "ERROR=0" in done.stdout
            assert "WARN=0" in done.stdout


def test_an_interrupted_demo_ends_everything_it_started(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = tmp_path_factory.mktemp("interrupted") / "data"
    installation = Installation(Project(root=REPOSITORY, data_dir=data))
    if is_external():
        with closing(connect(installation.project)) as client:
            empty_warehouse(client)
    command = ["demo", "--once", "--events", EVENTS, "--amplitude-port", str(free_port())]
    started = subprocess.Popen(
        [sys.executable, "-m", "telemetry_pipeline.cli", *command],
        cwd=REPOSITORY,
        env=installation.variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = time.monotonic() + 120
    while not (data / "logs" / "dagster.log").exists():
        assert started.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.2)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "Traceback" not in errors
    assert processes_of(data) == []
