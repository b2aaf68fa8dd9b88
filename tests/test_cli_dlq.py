"""`telemetry dlq` as a person meets it, and docs/dead_letters.md against what is true."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from contextlib import closing

import pytest
from click.testing import CliRunner, Result
from clickhouse_connect.driver.client import Client
from fresh import REPOSITORY
from log_records import MemorySource, common, edge, line, make_loader, record

from telemetry_pipeline.cli import main
from telemetry_pipeline.ingest.loader import new_session_id
from telemetry_pipeline.ingest.reasons import REJECTED
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import connect

GUIDE = (REPOSITORY / "docs" / "dead_letters.md").read_text()
HOUR_AGO_MS = 3_600_000


@pytest.fixture
def rejected(client: Client, project: Project) -> Client:
    """Two unknown events and a line that is no JSON, as dead letters."""
    ((now,),) = client.query("SELECT toUnixTimestamp64Milli(now64(3))").result_rows
    good = [line(record("report_exported", common(user), now - HOUR_AGO_MS)) for user in (1, 2)]
    source = MemorySource({"file": b"".join([*good, b"garbage\n"])}, name="app_events")
    with closing(connect(project, session_id=new_session_id())) as session:
        make_loader(session, project, source).run(max_bytes=2**40)
    return client


@pytest.fixture
def dlq(rejected: Client) -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(main, ["dlq", *arguments])


def test_list_counts_by_reason_and_shows_no_personal_value(dlq: Callable[..., Result]) -> None:
    done = dlq("list", "--json")
    counts = {row["reason"]: row["letters"] for row in json.loads(done.stdout)["dead_letters"]}
    assert counts == {"unknown_event": 2, "undecodable": 1}
    for arguments in (("list",), ("list", "--each"), ("list", "--each", "--json")):
        shown = dlq(*arguments).stdout
        assert "undecodable" in shown
        assert edge("user", 1) not in shown
        assert "report_exported" not in shown
        assert "garbage" not in shown


def test_times_are_utc_and_filters_reach_the_warehouse(dlq: Callable[..., Result]) -> None:
    (row,) = json.loads(dlq("list", "--reason", "undecodable", "--json").stdout)["dead_letters"]
    assert row["first_seen"].endswith("+00:00")
    assert dlq("list", "--until", "2020-01-01").stdout == "no dead letters\n"
    assert json.loads(dlq("list", "--since", "2020-01-01", "--json").stdout)["dead_letters"]


def test_show_prints_what_is_in_a_letter_and_records_it(
    dlq: Callable[..., Result], rejected: Client
) -> None:
    listed = json.loads(dlq("list", "--each", "--json").stdout)["dead_letters"]

    shown = [json.loads(dlq("show", row["letter"], "--json").stdout) for row in listed]

    payloads = json.dumps([letter["payload"] for letter in shown])
    assert edge("user", 1) in payloads
    assert "garbage" in payloads
    assert {letter["letter"] for letter in shown} == {row["letter"] for row in listed}
    assert rejected.query("SELECT count() FROM ops.dead_letter_access").result_rows == [(3,)]


def test_the_help_of_show_warns_of_personal_data() -> None:
    shown = CliRunner().invoke(main, ["dlq", "show", "--help"]).stdout
    assert "PRINTS PERSONAL DATA" in shown
    assert "ops.dead_letter_access" in shown


def test_replay_says_what_came_of_it(dlq: Callable[..., Result]) -> None:
    dry = dlq("replay", "--all", "--dry-run", "--json")
    assert json.loads(dry.stdout)["taken"] == {"unknown_event": 2, "undecodable": 1}

    done = dlq("replay", "--all", "--json")

    assert done.exit_code == 0, done.stderr
    (report,) = json.loads(done.stdout)["replays"]
    assert report["rejected"] == {"unknown_event": 2, "undecodable": 1}
    assert (report["items"], report["received"], report["waiting"]) == (3, 3, 0)
    assert dlq("replay", "--resume").stdout == "nothing to replay\n"


def test_letters_under_another_key_end_with_1_and_one_clear_line(
    dlq: Callable[..., Result], project: Project
) -> None:
    (project.keys_dir / "dead_letter.key").write_text(f"2:{'a1' * 32}")

    done = dlq("replay", "--all")

    assert done.exit_code == 1
    (problem,) = done.stderr.splitlines()
    assert "3 under key id 1" in problem


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay",),
        ("replay", "--dry-run"),
        ("replay", "--resume", "--all"),
        ("replay", "--reason", "no_such_reason"),
        ("purge",),
        ("purge", "--yes"),
        ("purge", "--all"),  # nobody is there to ask
        ("show",),
        ("list", "--since", "yesterday"),
    ],
)
def test_wrong_usage_ends_with_2_and_changes_nothing(
    dlq: Callable[..., Result], rejected: Client, arguments: tuple[str, ...]
) -> None:
    assert dlq(*arguments).exit_code == 2
    assert rejected.query("SELECT count() FROM raw.dead_letters").result_rows == [(3,)]
    assert rejected.query("SELECT count() FROM ops.dead_letter_replay_items").result_rows == [(0,)]


def test_purge_says_how_many_it_removed(dlq: Callable[..., Result], rejected: Client) -> None:
    done = dlq("purge", "--reason", "undecodable", "--yes", "--json")
    assert json.loads(done.stdout) == {"removed": 1}
    assert rejected.query("SELECT count() FROM raw.dead_letters").result_rows == [(2,)]


# -- the guide -----------------------------------------------------------------------------------


def test_the_guide_lists_every_reason_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)
    assert listed == list(REJECTED)


def test_every_command_of_the_guide_runs(dlq: Callable[..., Result]) -> None:
    letter = json.loads(dlq("list", "--each", "--json").stdout)["dead_letters"][0]["letter"]
    commands = [
        shlex.split(command)
        for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
        for command in block.splitlines()
    ]
    assert {command[2] for command in commands} == {"list", "show", "replay", "purge"}
    for command in commands:
        assert command[:2] == ["telemetry", "dlq"]
        known = [letter if re.fullmatch(r"\d+-\d+", part) else part for part in command[2:]]
        done = dlq(*known)
        assert done.exit_code == 0, (command, done.stderr)
