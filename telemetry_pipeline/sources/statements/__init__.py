"""The SQL of the sources that read the warehouse: one statement a file, read by name."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def statement(name: str) -> str:
    """The text of `name`.sql in this folder."""
    return (resources.files(__package__) / f"{name}.sql").read_text(encoding="utf-8")
