"""The one error a user is meant to read: a single line that says what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path


class TelemetryError(Exception):
    """A problem the user can mend. Its text is one line and carries no personal value.

    `exit_code` is what a command that ends with it returns.
    """

    exit_code = 1


class PolicyError(TelemetryError):
    """A problem in telemetry.yaml or catalog/, with its place: `file:line: field: problem`."""

    exit_code = 2

    def __init__(self, file: Path, line: int | None, field: str, problem: str) -> None:
        self.file, self.line, self.field, self.problem = file, line, field, problem
        place = f"{file.name}:{line}" if line is not None else file.name
        super().__init__(": ".join(part for part in (place, field, problem) if part))
