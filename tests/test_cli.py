"""The command as a person meets it: one clear line for each mistake, help with an example."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from fresh import REPOSITORY

from telemetry_pipeline.cli import main

COMMANDS = [
    "demo",
    "dev",
    "dlq list",
    "dlq purge",
    "dlq replay",
    "dlq show",
    "env",
    "ingest",
    "keys init",
    "sql",
    "warehouse serve",
    "warehouse migrate",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout's policy, without its environment."""
    for name in ("catalog", "dbt_project"):
        shutil.copytree(
            REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("target", "logs")
        )
    for name in ("telemetry.yaml", "dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


def telemetry(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CLICKHOUSE_URL", "TELEMETRY_ROOT", "TELEMETRY_DATA_DIR")
    }
    return subprocess.run(
        [sys.executable, "-m", "telemetry_pipeline.cli", *arguments],
        cwd=root,
        env=kept | {"TELEMETRY_ROOT": str(root)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def the_one_line_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("telemetry:")]
    return line


@pytest.mark.parametrize("command", ["demo --once", "dev", "ingest", "sql judge"])
def test_a_missing_telemetry_yaml_is_one_line(root: Path, command: str) -> None:
    (root / "telemetry.yaml").unlink()
    done = telemetry(root, *command.split())
    assert "telemetry.yaml: not found" in the_one_line_of(done)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sources: [", "telemetry.yaml:1: is not valid YAML"),
        ("sources: {}\n", "telemetry.yaml:1: sources:"),
        ("sources: {a: {kind: otel_file, path: x}}\nsorces: 1\n", "telemetry.yaml:2: sorces:"),
        ("a: 1\na: 2\n", "telemetry.yaml:2: a: stands twice"),
    ],
)
def test_a_broken_telemetry_yaml_is_one_line_with_its_place(
    root: Path, text: str, line: str
) -> None:
    (root / "telemetry.yaml").write_text(text)
    done = telemetry(root, "demo", "--once", "--json")
    assert line in the_one_line_of(done)
    assert done.stdout == ""


def test_an_unwritable_data_folder_is_one_line(root: Path) -> None:
    # A file in its place: root may write everywhere else.
    (root / ".data").write_text("in the way")
    for command in ("demo --once", "dev", "warehouse serve", "keys init"):
        done = telemetry(root, *command.split())
        assert ".data cannot be written to" in the_one_line_of(done), command


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


@pytest.mark.parametrize(
    "command",
    ["dev --dagster-port", "demo --dagster-port", "demo --once --amplitude-port"],
)
def test_a_used_port_is_one_line_that_names_the_option(
    root: Path, used_port: int, command: str
) -> None:
    done = telemetry(root, *command.split(), str(used_port))
    line = the_one_line_of(done)
    assert f"port {used_port} is in use" in line
    assert command.split()[-1] in line


def test_a_used_port_of_the_warehouse_is_one_line(root: Path, used_port: int) -> None:
    line = the_one_line_of(telemetry(root, "warehouse", "serve", "--port", str(used_port)))
    assert str(used_port) in line


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9", "connection refused"),
        ("http://127.0.0.1:notaport", "no valid port"),
        ("clickhouse", "not understood"),
        ("http://u:secret-word@no-such-host.invalid:8123", "http://no-such-host.invalid:8123"),
    ],
)
def test_a_wrong_clickhouse_url_is_one_line_without_its_password(
    root: Path, url: str, says: str
) -> None:
    for command in ("demo --once", "dev", "warehouse migrate", "ingest"):
        done = telemetry(root, *command.split(), CLICKHOUSE_URL=url)
        assert says in the_one_line_of(done), command
        assert "secret-word" not in done.stderr + done.stdout


def test_without_a_warehouse_a_command_says_what_to_start(root: Path) -> None:
    telemetry(root, "keys", "init")
    assert "telemetry dev" in the_one_line_of(telemetry(root, "ingest"))


def test_env_says_what_to_start_and_still_exports_dagsters_home(root: Path) -> None:
    done = telemetry(root, "env")
    assert done.returncode == 0
    assert f"export DAGSTER_HOME={root}" in done.stdout
    assert "start `telemetry dev` first" in done.stderr
    assert json.loads(telemetry(root, "env", "--json").stdout)["DAGSTER_HOME"] == str(root)


def test_keys_are_made_once_and_only_their_owner_may_read_them(root: Path) -> None:
    made = json.loads(telemetry(root, "keys", "init", "--json").stdout)["made"]
    files = sorted((root / ".data" / "keys").iterdir())
    assert sorted(made) == [file.stem for file in files]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    before = [file.read_bytes() for file in files]
    assert json.loads(telemetry(root, "keys", "init", "--json").stdout)["made"] == []
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_an_example_and_its_exit_codes(root: Path, command: str) -> None:
    shown = telemetry(root, *command.split(), "--help").stdout
    assert "--json" in shown
    assert "Example:" in shown
    assert f"telemetry {command.split()[0]}" in shown
    assert "Exit codes:" in shown


def test_no_command_is_missing_from_the_list_above() -> None:
    def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from leaves(command, (*path, name))
            else:
                yield " ".join((*path, name))

    assert sorted(leaves(main)) == sorted(COMMANDS)
