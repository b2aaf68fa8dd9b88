"""What the read-only user may say, on top of the grants the engine itself enforces.

The engine drops the reader's rights with SET ROLE. What a role cannot stop is refused here: taking
the rights back, reading the server's files through a scalar function, and looking at the
statements of other users, which run under the same engine user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from telemetry_pipeline.warehouse.embedded.errors import QueryError, access_denied
from telemetry_pipeline.warehouse.embedded.lexer import Kind, tokens
from telemetry_pipeline.warehouse.embedded.sql_head import Statement, names_in, table_functions_in

_STATEMENTS: Final = frozenset(
    ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "SET", "USE")
)
_FUNCTIONS: Final = frozenset(
    ("file", "python", "merge", "input", "executable", "catboostevaluate")
)
_SYSTEM_TABLES: Final = frozenset(("processes", "mutations", "user_processes", "user_query_log"))


def check_reader(statement: Statement, database: str | None, parameters: Mapping[str, str]) -> None:
    """Raise `QueryError` for what the read-only user may not run."""
    words = statement.words
    if not words or words[0] not in _STATEMENTS:
        raise _read_only()
    if words[0] == "SET" and words[1:2] in (("ROLE",), ("DEFAULT",)):
        raise access_denied("telemetry_reader: the read-only user cannot change its role.")
    for token in tokens(statement.sql, complete=True):
        if token.kind is Kind.QUOTED and b"\\" in statement.sql[token.start : token.end]:
            raise access_denied("telemetry_reader: escapes in quoted names are not allowed.")
    denied = table_functions_in(statement.sql) & _FUNCTIONS
    if denied:
        raise access_denied(
            f"telemetry_reader: the read-only user cannot call {', '.join(sorted(denied))}()."
        )
    _check_system_tables(statement, database, parameters)


def _check_system_tables(
    statement: Statement, database: str | None, parameters: Mapping[str, str]
) -> None:
    names = set(names_in(statement.sql))
    if "identifier" in names:
        # A parameter can stand for a table's name, and then may hide it behind an escape.
        if any("\\" in value for value in parameters.values()):
            raise access_denied("telemetry_reader: escapes in names are not allowed.")
        for value in parameters.values():
            names.update(re.findall(r"\w+", value.lower()))
    if statement.words[0] == "SET" and any(name.startswith("param_") for name in names):
        raise access_denied("telemetry_reader: send parameters with the query, not with SET.")
    in_system = "system" in names or database == "system"
    if (in_system and names & _SYSTEM_TABLES) or "processlist" in names:
        raise access_denied("telemetry_reader: the statements of other users are not readable.")
    if statement.words[0] == "USE" and "system" in names:
        raise access_denied("telemetry_reader: name tables of system in full instead of USE.")


def _read_only() -> QueryError:
    return QueryError(164, "READONLY", "telemetry_reader: Cannot execute query in readonly mode.")
