"""Numbered .sql files, applied in order and once each; their checksums guard against edits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.errors import TelemetryError

_FILE_NAME = re.compile(r"(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.sql")
_STATEMENT_END = re.compile(r";[ \t]*(?:--[^\n]*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Migration:
    """One file: its number, name, text, and the SHA-256 of its text."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """The statements, split where a line ends with a semicolon."""
        parts = (part.strip() for part in _STATEMENT_END.split(self.sql))
        return [part for part in parts if _without_comments(part)]


def packaged_migrations() -> list[Migration]:
    """The migrations that come with this version, in order, numbered 1, 2, 3, … without a gap."""
    folder = resources.files("telemetry_pipeline.warehouse") / "migrations"
    found = []
    for file in folder.iterdir():
        matched = _FILE_NAME.fullmatch(file.name)
        if matched:
            found.append(Migration(int(matched["number"]), matched["name"], file.read_text()))
    found.sort(key=lambda migration: migration.number)
    numbers = [migration.number for migration in found]
    if numbers != list(range(1, len(found) + 1)):
        raise TelemetryError(f"migrations are not numbered without a gap: {numbers}")
    return found


def migrate(client: Client, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing; returns what was applied.

    Raises TelemetryError when an applied file was edited or the warehouse is newer than this
    version. Statements are idempotent, so a migration cut off half-way is run again whole.
    """
    wanted = packaged_migrations() if migrations is None else list(migrations)
    client.command("CREATE DATABASE IF NOT EXISTS ops")
    client.command(
        "CREATE TABLE IF NOT EXISTS ops.schema_migrations (number UInt32, name String, "
        "checksum String, applied_at DateTime64(3, 'UTC')) ENGINE = MergeTree ORDER BY number"
    )
    applied = {
        row[0]: row[1]
        for row in client.query("SELECT number, checksum FROM ops.schema_migrations").result_rows
    }
    _check_history(wanted, applied)
    fresh = [migration for migration in wanted if migration.number not in applied]
    for migration in fresh:
        for statement in migration.statements:
            client.command(statement)
        client.command(
            "INSERT INTO ops.schema_migrations SELECT {number:UInt32}, {name:String}, "
            "{checksum:String}, now64(3)",
            parameters={
                "number": migration.number,
                "name": migration.name,
                "checksum": migration.checksum,
            },
        )
    return fresh


def _check_history(wanted: Sequence[Migration], applied: dict[int, str]) -> None:
    by_number = {migration.number: migration for migration in wanted}
    for number, checksum in sorted(applied.items()):
        migration = by_number.get(number)
        if migration is None:
            raise TelemetryError(
                f"the warehouse has migration {number:04}, which this version does not know: "
                "it was migrated by a newer version"
            )
        if migration.checksum != checksum:
            raise TelemetryError(
                f"migrations/{number:04}_{migration.name}.sql was edited after it was applied; "
                "undo the edit and add a new migration instead"
            )


def _without_comments(statement: str) -> str:
    lines = (line for line in statement.splitlines() if not line.lstrip().startswith("--"))
    return "".join(lines).strip()
