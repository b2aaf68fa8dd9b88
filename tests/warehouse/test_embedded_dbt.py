"""dbt with its ClickHouse adapter against the embedded warehouse, on a project of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from embedded_server import Server

FILES = {
    "dbt_project.yml": """
name: tiny
version: "1.0"
profile: tiny
flags:
  send_anonymous_usage_stats: false
""",
    "seeds/people.csv": "id,name,day\n1,Ada,2026-01-01\n2,Bob,2026-01-02\n3,Cy,2026-01-02\n",
    "models/people_view.sql": (
        "{{ config(materialized='view') }} select id, name, day from {{ ref('people') }}"
    ),
    "models/people_table.sql": """
{{ config(materialized='table', engine='MergeTree()', order_by='id') }}
select toInt32(id) as id, toString(name) as name from {{ ref('people_view') }}
""",
    "models/by_day.sql": """
{{ config(materialized='incremental', incremental_strategy='insert_overwrite',
          engine='MergeTree()', order_by='day', partition_by='day') }}
select toDate(day) as day, count() as people, {{ var('round', 1) }} as round
from {{ ref('people_view') }}
{% if is_incremental() %} where toDate(day) = '2026-01-02' {% endif %}
group by day
""",
    "models/by_id.sql": """
{{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='id',
          engine='MergeTree()', order_by='id') }}
select toInt32(id) as id, {{ var('round', 1) }} as round from {{ ref('people_view') }}
{% if is_incremental() %} where id = 3 {% endif %}
""",
    "models/schema.yml": """
models:
  - name: people_table
    description: One row a person.
    config: {contract: {enforced: true}}
    columns:
      - name: id
        data_type: Int32
        data_tests: [unique, not_null]
      - name: name
        data_type: String
  - name: by_day
    columns:
      - name: day
        data_tests: [not_null]
unit_tests:
  - name: a_day_counts_its_people
    model: by_day
    overrides: {macros: {is_incremental: false}}
    given:
      - input: ref('people_view')
        rows:
          - {id: 1, name: a, day: "2026-02-01"}
          - {id: 2, name: b, day: "2026-02-01"}
    expect:
      rows:
        - {day: "2026-02-01", people: 2, round: 1}
""",
    "snapshots/people_history.sql": """
{% snapshot people_history %}
{{ config(unique_key='id', strategy='check', check_cols=['name']) }}
select id, name from {{ ref('people_table') }}
{% endsnapshot %}
""",
    "tests/nobody_is_nameless.sql": "select * from {{ ref('people_table') }} where name = ''",
}

# One process for all commands: starting dbt takes longer than running it on three rows.
RUN = """
import json, sys
from dbt.cli.main import dbtRunner
outcomes = []
for arguments in json.loads(sys.argv[1]):
    done = dbtRunner().invoke(arguments)
    nodes = {}
    for node in getattr(done.result, "results", None) or []:
        nodes[node.node.name] = str(node.status)
    outcomes.append({"success": done.success, "nodes": nodes, "error": str(done.exception)})
print("OUTCOMES" + json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, object]]]:
    project = tmp_path_factory.mktemp("dbt")
    for name, text in FILES.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip())
    user = server.users.writer
    output = {
        "type": "clickhouse",
        "host": server.endpoint.host,
        "port": server.endpoint.port,
        "user": user.name,
        "password": user.password,
        "schema": "tiny",
        "threads": 4,
        "use_lw_deletes": True,
    }
    profiles = {"tiny": {"target": "dev", "outputs": {"dev": output}}}
    (project / "profiles.yml").write_text(json.dumps(profiles))
    second = ["--vars", "round: 2"]
    commands = {
        "first": ["build"],
        "second": ["build", *second, "--exclude", "test_type:unit"],
        "snapshot": ["snapshot"],
        "docs": ["docs", "generate"],
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(list(commands.values()))],
        cwd=project,
        env={**os.environ, "DBT_PROFILES_DIR": str(project)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "OUTCOMES" in done.stdout, done.stdout + done.stderr
    listed = json.loads(done.stdout.split("OUTCOMES")[1])
    found = dict(zip(commands, listed, strict=True))
    found["catalog"] = json.loads((project / "target" / "catalog.json").read_text())
    yield found
    server.sql("DROP DATABASE tiny")


@pytest.mark.parametrize("command", ["first", "second", "snapshot", "docs"])
def test_every_command_succeeds(outcomes: dict[str, dict[str, object]], command: str) -> None:
    assert outcomes[command]["success"], outcomes[command]


def test_every_kind_of_node_ran(outcomes: dict[str, dict[str, object]]) -> None:
    nodes = outcomes["first"]["nodes"]
    assert isinstance(nodes, dict)
    assert nodes["a_day_counts_its_people"] == "pass"
    assert nodes["unique_people_table_id"] == "pass"
    assert nodes["nobody_is_nameless"] == "pass"
    assert {nodes[name] for name in ("people", "people_view", "people_table")} == {"success"}
    assert {nodes[name] for name in ("by_day", "by_id", "people_history")} == {"success"}


@pytest.mark.usefixtures("outcomes")
class TestTheBuiltTables:
    def test_hold_the_seed(self, server: Server) -> None:
        names = server.sql("SELECT name FROM tiny.people_table ORDER BY id")
        assert names.split() == ["Ada", "Bob", "Cy"]

    def test_had_one_partition_overwritten(self, server: Server) -> None:
        rows = server.sql("SELECT day, people, round FROM tiny.by_day ORDER BY day")
        assert rows.splitlines() == ["2026-01-01\t1\t1", "2026-01-02\t2\t2"]

    def test_had_one_key_replaced(self, server: Server) -> None:
        rows = server.sql("SELECT id, round FROM tiny.by_id ORDER BY id")
        assert rows.splitlines() == ["1\t1", "2\t1", "3\t2"]

    def test_have_one_snapshot_row_for_what_did_not_change(self, server: Server) -> None:
        assert server.sql("SELECT count() FROM tiny.people_history") == "3"

    def test_are_in_the_catalogue(self, outcomes: dict[str, dict[str, object]]) -> None:
        nodes = outcomes["catalog"]["nodes"]
        assert isinstance(nodes, dict)
        columns = nodes["model.tiny.people_table"]["columns"]
        assert {name: column["type"] for name, column in columns.items()} == {
            "id": "Int32",
            "name": "String",
        }
