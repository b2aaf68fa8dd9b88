"""Reads catalog/ (OTel Weaver registry v2 YAML, `file_format: definition/2`) into the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

from telemetry_pipeline.catalog.model import (
    DEFAULT_MAX_LENGTH,
    Attribute,
    AttributeType,
    Catalog,
    Column,
    Event,
    EventAttribute,
    EventClass,
    PiiClass,
)
from telemetry_pipeline.errors import PolicyError
from telemetry_pipeline.yaml_document import KeyPath, YamlDocument, load_yaml

_EVENT_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_ATTRIBUTE_KEY = _EVENT_NAME
_PAYLOAD_KEY = re.compile(r"[a-z][A-Za-z0-9]*")
_EVENT_ANNOTATIONS = {"class", "owner", "purpose", "schema_version"}
_ATTRIBUTE_ANNOTATIONS = {
    "pii",
    "column",
    "payload_key",
    "pattern",
    "max_length",
    "minimum",
    "maximum",
}


def read_catalog(folder: Path) -> Catalog:
    """Read every .yaml below `folder`. Raises PolicyError with file, line, field and the fix."""
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise PolicyError(folder, None, "", "holds no .yaml file; the catalogue is missing")
    documents = [load_yaml(file) for file in files]
    for document in documents:
        if document.data.get("file_format") != "definition/2":
            raise document.error(("file_format",), "must be definition/2 (OTel Weaver registry v2)")
    attributes = _read_attributes(documents)
    groups = _read_groups(documents, attributes)
    events = _read_events(documents, attributes, groups)
    return Catalog(tuple(events.values()), tuple(attributes.values()))


def _entries(
    documents: list[YamlDocument], section: str
) -> Iterator[tuple[YamlDocument, KeyPath, Any]]:
    for document in documents:
        for index, entry in enumerate(document.data.get(section) or []):
            if not isinstance(entry, dict):
                raise document.error((section, index), "must be a mapping")
            yield document, (section, index), entry


def _read_attributes(documents: list[YamlDocument]) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {}
    for document, path, entry in _entries(documents, "attributes"):
        attribute = _read_attribute(document, path, entry)
        if attribute.key in attributes:
            raise document.error((*path, "key"), f"{attribute.key} is defined twice")
        attributes[attribute.key] = attribute
    return attributes


def _read_attribute(document: YamlDocument, path: KeyPath, entry: dict[str, Any]) -> Attribute:
    key = _text(document, path, entry, "key")
    if not _ATTRIBUTE_KEY.fullmatch(key):
        raise document.error((*path, "key"), "must be dotted lower snake case")
    notes = _annotations(document, path, entry, _ATTRIBUTE_ANNOTATIONS)
    where = (*path, "annotations")
    if notes.get("pii") not in get_args(PiiClass):
        raise document.error((*where, "pii"), f"{key} needs pii: none | pseudonymise | drop")
    pii = cast(PiiClass, notes["pii"])
    column, payload_key = notes.get("column"), notes.get("payload_key")
    if column is not None and column not in get_args(Column):
        raise document.error((*where, "column"), f"must be one of {', '.join(get_args(Column))}")
    if payload_key is not None and not _PAYLOAD_KEY.fullmatch(str(payload_key)):
        raise document.error((*where, "payload_key"), "must be camelCase")
    destinations = [value for value in (column, payload_key) if value is not None]
    if len(destinations) != (0 if pii == "drop" else 1):
        raise document.error(where, f"{key} needs a column or a payload_key (none with pii: drop)")
    if pii == "pseudonymise" and column is None:
        raise document.error(where, f"{key} is pseudonymised and so needs a column")
    kind, members = _read_type(document, path, entry)
    return Attribute(
        key=key,
        type=kind,
        brief=_text(document, path, entry, "brief"),
        pii=pii,
        members=members,
        column=column,
        payload_key=payload_key,
        pattern=_pattern(document, (*where, "pattern"), notes.get("pattern")),
        max_length=int(notes.get("max_length", DEFAULT_MAX_LENGTH)),
        minimum=notes.get("minimum"),
        maximum=notes.get("maximum"),
    )


def _read_type(
    document: YamlDocument, path: KeyPath, entry: dict[str, Any]
) -> tuple[AttributeType, tuple[str, ...]]:
    kind = entry.get("type")
    if isinstance(kind, dict) and kind.get("members"):
        members = tuple(member.get("value") for member in kind["members"])
        if not all(isinstance(member, str) for member in members):
            raise document.error((*path, "type"), "every member needs a string value")
        return "string", members
    if kind in get_args(AttributeType):
        return cast(AttributeType, kind), ()
    raise document.error((*path, "type"), "must be string, int, double, boolean or members")


def _pattern(document: YamlDocument, path: KeyPath, pattern: Any) -> str | None:
    if pattern is None:
        return None
    try:
        re.compile(pattern)
    except (re.error, TypeError):
        raise document.error(path, "is not a regular expression") from None
    return str(pattern)


def _read_groups(
    documents: list[YamlDocument], attributes: dict[str, Attribute]
) -> dict[str, tuple[EventAttribute, ...]]:
    groups: dict[str, tuple[EventAttribute, ...]] = {}
    for document, path, entry in _entries(documents, "attribute_groups"):
        name = _text(document, path, entry, "id")
        groups[name] = tuple(_read_references(document, path, entry, attributes, groups))
    return groups


def _read_events(
    documents: list[YamlDocument],
    attributes: dict[str, Attribute],
    groups: dict[str, tuple[EventAttribute, ...]],
) -> dict[str, Event]:
    events: dict[str, Event] = {}
    for document, path, entry in _entries(documents, "events"):
        name = _text(document, path, entry, "name")
        if not _EVENT_NAME.fullmatch(name):
            raise document.error((*path, "name"), "must be lower snake case, parts joined by dots")
        if name in events:
            raise document.error((*path, "name"), f"{name} is defined twice")
        notes = _annotations(document, path, entry, _EVENT_ANNOTATIONS)
        where = (*path, "annotations")
        if notes.get("class") not in get_args(EventClass):
            raise document.error((*where, "class"), f"{name} needs class: technical | business")
        events[name] = Event(
            name=name,
            brief=_text(document, path, entry, "brief"),
            event_class=notes["class"],
            owner=_text(document, where, notes, "owner"),
            purpose=_text(document, where, notes, "purpose"),
            schema_version=_text(document, where, notes, "schema_version"),
            attributes=tuple(_read_references(document, path, entry, attributes, groups)),
        )
    return events


def _read_references(
    document: YamlDocument,
    path: KeyPath,
    entry: dict[str, Any],
    attributes: dict[str, Attribute],
    groups: dict[str, tuple[EventAttribute, ...]],
) -> Iterator[EventAttribute]:
    for index, reference in enumerate(entry.get("attributes") or []):
        where = (*path, "attributes", index)
        if "ref_group" in reference:
            group = groups.get(reference["ref_group"])
            if group is None:
                raise document.error((*where, "ref_group"), "names no attribute group")
            yield from group
            continue
        attribute = attributes.get(reference.get("ref"))
        if attribute is None:
            raise document.error((*where, "ref"), "names no attribute of the catalogue")
        level = reference.get("requirement_level", "recommended")
        if level not in ("required", "recommended", "opt_in"):
            raise document.error(
                (*where, "requirement_level"), "must be required, recommended or opt_in"
            )
        yield EventAttribute(attribute, required=level == "required")


def _annotations(
    document: YamlDocument, path: KeyPath, entry: dict[str, Any], known: set[str]
) -> dict[str, Any]:
    notes = entry.get("annotations")
    if not isinstance(notes, dict):
        raise document.error(path, "needs annotations")
    for key in notes:
        if key not in known:
            raise document.error(
                (*path, "annotations", key), f"is not an annotation ({', '.join(sorted(known))})"
            )
    return notes


def _text(document: YamlDocument, path: KeyPath, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise document.error((*path, key), f"needs a {key}")
    return value
