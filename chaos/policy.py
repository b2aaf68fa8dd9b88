"""What an operator changes while ingest runs: the catalogue, and the id of the pseudonym key."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

from chaos.events import PASSING_EVENT, SCHEMA_VERSION, WIDENED_SURFACE
from telemetry_pipeline.paths import Project

_SIDEBAR = "        - {id: sidebar, value: sidebar, brief: A side panel., stability: stable}\n"
_WIDENED = (
    f"        - {{id: {WIDENED_SURFACE}, value: {WIDENED_SURFACE}, brief: Passing., "
    "stability: stable}\n"
)
_PASSING = f"""\
file_format: definition/2

events:
  - name: {PASSING_EVENT}
    brief: Comes and goes while chaos runs.
    stability: stable
    attributes:
      - ref_group: event.common
    annotations:
      class: technical
      owner: web-platform
      purpose: Chaos.
      schema_version: {SCHEMA_VERSION}
"""


class Policy:
    """Edits the project's own copies, each file whole in one step, as a careful operator would."""

    def __init__(self, project: Project) -> None:
        self._attributes = project.catalog_dir / "attributes.yaml"
        self._passing = project.catalog_dir / "events" / "chaos.yaml"
        self._key = project.keys_dir / "pseudonym.key"
        self._original = self._attributes.read_text(encoding="utf-8")
        if self._original.count(_SIDEBAR) != 1 or WIDENED_SURFACE in self._original:
            raise SystemExit("chaos: catalog/attributes.yaml changed; mend chaos/policy.py")
        self._key_number = 1
        self._next = cycle((self._widen, self._add_event, self._narrow, self._remove_event))
        self.catalogue_changes = 0
        self.key_rotations = 0

    def change_catalogue(self) -> str:
        """Make the next change of the round; says which."""
        change: Callable[[], str] = next(self._next)
        self.catalogue_changes += 1
        return change()

    def rotate_key_id(self) -> str:
        """The same secret under the next id: intents record another id, pseudonyms stay."""
        _, _, secret = self._key.read_text(encoding="ascii").strip().partition(":")
        self._key_number += 1
        self.key_rotations += 1
        _replace(self._key, f"{self._key_number}:{secret}\n")
        return f"pseudonym key id {self._key_number}"

    def _widen(self) -> str:
        _replace(self._attributes, self._original.replace(_SIDEBAR, _SIDEBAR + _WIDENED))
        return "catalogue: an enum is wider"

    def _narrow(self) -> str:
        _replace(self._attributes, self._original)
        return "catalogue: the enum is as it was"

    def _add_event(self) -> str:
        _replace(self._passing, _PASSING)
        return "catalogue: an event more"

    def _remove_event(self) -> str:
        self._passing.unlink()
        return "catalogue: the event is gone"


def _replace(file: Path, text: str) -> None:
    draft = file.with_suffix(".draft")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as opened:
        opened.write(text)
    draft.replace(file)
