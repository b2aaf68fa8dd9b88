"""YAML that remembers its lines: duplicate keys are errors, every value knows where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from telemetry_pipeline.errors import PolicyError

KeyPath = tuple[str | int, ...]
_DEEPEST = 50


@dataclass(frozen=True)
class YamlDocument:
    """Plain data (dict, list, str, int, float, bool, None) and the line of each key path."""

    file: Path
    data: Any
    lines: dict[KeyPath, int] = field(repr=False)

    def line(self, path: Sequence[str | int]) -> int | None:
        """The 1-based line of `path`, or of its nearest parent that is in the file."""
        wanted = tuple(path)
        while wanted and wanted not in self.lines:
            wanted = wanted[:-1]
        return self.lines.get(wanted)

    def error(self, path: Sequence[str | int], problem: str) -> PolicyError:
        return PolicyError(self.file, self.line(path), ".".join(map(str, path)), problem)


def load_yaml(file: Path) -> YamlDocument:
    """Read one YAML file. Raises PolicyError for a missing, unreadable or malformed file."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PolicyError(file, None, "", f"not found in {file.parent}") from None
    except UnicodeDecodeError as error:
        raise PolicyError(file, None, "", f"is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise PolicyError(file, None, "", f"cannot be read: {error.strerror}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[KeyPath, int] = {(): 1}
        data = _build(file, root, (), lines) if root is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        problem = f"is not valid YAML: {error.problem or error.context}"
        raise PolicyError(file, line, "", problem) from None
    except yaml.YAMLError:
        raise PolicyError(file, None, "", "is not valid YAML") from None
    return YamlDocument(file, data, lines)


def _build(file: Path, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    lines[path] = node.start_mark.line + 1
    if len(path) > _DEEPEST:  # an alias to what it stands in has no end
        raise PolicyError(file, lines[path], str(path[0]), "is nested too deep")
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(file, node, path, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_build(file, item, (*path, index), lines) for index, item in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except ValueError:  # 2026-13-41 is meant to be a date and is none
        field = ".".join(map(str, path))
        problem = "is not valid YAML; if it is text, put it in quotes"
        raise PolicyError(file, lines[path], field, problem) from None


def _build_mapping(
    file: Path, node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int]
) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        line = key_node.start_mark.line + 1
        if key in built:
            field = ".".join(map(str, (*path, key)))
            raise PolicyError(file, line, field, "stands twice; remove one of the two")
        built[key] = _build(file, value_node, (*path, key), lines)
        lines[(*path, key)] = line
    return built
