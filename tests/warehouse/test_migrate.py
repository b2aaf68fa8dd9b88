"""Migrations: once each, in order, never edited, never backwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from fresh import empty_warehouse

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse import migrate as migrate_module
from telemetry_pipeline.warehouse.client import connect
from telemetry_pipeline.warehouse.migrate import Migration, migrate, packaged_migrations

PACKAGED = packaged_migrations()


@pytest.fixture
def empty(project: Project) -> Iterator[Client]:
    """A client of a warehouse that has nothing of ours."""
    with closing(connect(project)) as client:
        empty_warehouse(client)
        yield client


def applied(client: Client) -> list[tuple[int, str]]:
    rows = client.query("SELECT number, checksum FROM ops.schema_migrations ORDER BY number")
    return [tuple(row) for row in rows.result_rows]


def tables(client: Client) -> set[tuple[str, str]]:
    rows = client.query(
        "SELECT database || '.' || name, create_table_query FROM system.tables "
        "WHERE database IN ('raw', 'ops', 'privacy')"
    )
    return {tuple(row) for row in rows.result_rows}


def made_of(number: int, *statements: str) -> Migration:
    return Migration(number, "test", "\n".join(f"{statement};" for statement in statements))


def test_a_fresh_warehouse_gets_everything_and_a_second_run_nothing(empty: Client) -> None:
    assert migrate(empty) == PACKAGED
    assert applied(empty) == [(item.number, item.checksum) for item in PACKAGED]
    before = tables(empty)

    assert migrate(empty) == []
    assert tables(empty) == before


def test_only_what_is_missing_is_applied(empty: Client) -> None:
    migrate(empty, PACKAGED[:3])

    assert migrate(empty) == PACKAGED[3:]


def test_a_migration_cut_off_anywhere_is_run_again_whole(empty: Client) -> None:
    # The worst place: every statement has run, and nothing was noted.
    for migration in PACKAGED:
        for statement in migration.statements:
            empty.command(statement)
    before = tables(empty)

    assert migrate(empty) == PACKAGED
    assert {row for row in tables(empty) if "schema_migrations" not in row[0]} == before
    epochs = empty.query("SELECT kind, epoch FROM privacy.epochs ORDER BY kind").result_rows
    assert [tuple(row) for row in epochs] == [("erasure", 0), ("consent", 0), ("edge_link", 0)]


def test_a_migration_that_fails_is_not_noted_and_can_be_mended(empty: Client) -> None:
    good = "CREATE TABLE IF NOT EXISTS ops.half (x UInt8) ENGINE = MergeTree ORDER BY x"
    with pytest.raises(DatabaseError):
        migrate(empty, [made_of(1, good, "CREATE TABLE ops.other (x Nonsense)")])
    assert applied(empty) == []

    mended = made_of(1, good)
    assert migrate(empty, [mended]) == [mended]


def test_an_edited_migration_is_refused_before_anything_is_applied(empty: Client) -> None:
    migrate(empty, PACKAGED[:2])
    edited = replace(PACKAGED[1], sql=PACKAGED[1].sql + "-- a word more\n")

    with pytest.raises(TelemetryError, match=r"0002_raw_events\.sql was edited .* undo the edit"):
        migrate(empty, [PACKAGED[0], edited, *PACKAGED[2:]])

    assert len(applied(empty)) == 2


def test_a_newer_warehouse_is_refused(empty: Client) -> None:
    migrate(empty, PACKAGED[:3])

    with pytest.raises(TelemetryError, match="has migration 0003, which this version does not"):
        migrate(empty, PACKAGED[:2])


def test_two_that_migrate_at_once_both_succeed(empty: Client, project: Project) -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            with closing(connect(project)) as client:
                migrate(client)
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert migrate(empty) == []


def test_packaged_migrations_have_no_gap() -> None:
    assert [item.number for item in PACKAGED] == list(range(1, len(PACKAGED) + 1))


def test_a_gap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    for name in ("0001_first.sql", "0003_third.sql", "notes.txt"):
        (folder / name).write_text("SELECT 1;\n")
    monkeypatch.setattr(migrate_module.resources, "files", lambda _: tmp_path)

    with pytest.raises(TelemetryError, match=r"without a gap: \[1, 3\]"):
        packaged_migrations()


def test_statements_end_where_a_line_ends_with_a_semicolon() -> None:
    text = "-- first; with a comment\nSELECT ';' AS x; -- end\n\nSELECT 2\n;\n-- nothing more\n"

    assert [item.splitlines()[-1] for item in Migration(1, "x", text).statements] == [
        "SELECT ';' AS x",
        "SELECT 2",
    ]


@pytest.mark.parametrize("migration", PACKAGED, ids=lambda item: item.name)
def test_every_packaged_statement_may_be_repeated(migration: Migration) -> None:
    for statement in migration.statements:
        first = next(line for line in statement.splitlines() if line and not line.startswith("--"))
        assert first.startswith(("CREATE", "INSERT", "ALTER")), first
        if first.startswith("CREATE"):
            assert " IF NOT EXISTS " in first or " OR REPLACE VIEW " in first, first
