"""Reads catalog/ (OTel Weaver registry v2 YAML, `file_format: definition/2`) into the model."""

from __future__ import annotations

import math
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
#: What Python's expressions have and RE2 has not: the statement would be refused at every slice.
_NOT_RE2 = re.compile(r"\(\?(?:[=!>(]|<[=!]|P=)|\\[1-9Z]")
_REPETITION = re.compile(r"\{(\d+)?(?:,(\d+)?)?\}")
_SECTIONS = ("attributes", "attribute_groups", "events")
_PSEUDONYM_COLUMNS = ("org_id_hash", "anonymous_user_id", "session_id")
_INT64 = range(-(2**63), 2**63)
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
        _check_document(document)
    attributes = _read_attributes(documents)
    groups = _read_groups(documents, attributes)
    events = _read_events(documents, attributes, groups)
    if not events:
        raise PolicyError(folder, None, "", "holds no event; the catalogue is incomplete")
    return Catalog(tuple(events.values()), tuple(attributes.values()))


def _check_document(document: YamlDocument) -> None:
    if not isinstance(document.data, dict):
        raise document.error((), "must be a mapping with file_format, attributes or events")
    if document.data.get("file_format") != "definition/2":
        raise document.error(("file_format",), "must be definition/2 (OTel Weaver registry v2)")
    for section in document.data:
        if section not in ("file_format", *_SECTIONS):
            raise document.error((section,), f"is not a section ({', '.join(_SECTIONS)})")


def _entries(
    documents: list[YamlDocument], section: str
) -> Iterator[tuple[YamlDocument, KeyPath, Any]]:
    for document in documents:
        for index, entry in enumerate(_list(document, (section,), document.data.get(section))):
            if not isinstance(entry, dict):
                raise document.error((section, index), "must be a mapping")
            yield document, (section, index), entry


def _list(document: YamlDocument, path: KeyPath, value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise document.error(path, "must be a list")
    return value


def _read_attributes(documents: list[YamlDocument]) -> dict[str, Attribute]:
    attributes: dict[str, Attribute] = {}
    payload_keys: dict[str, str] = {}
    for document, path, entry in _entries(documents, "attributes"):
        attribute = _read_attribute(document, path, entry)
        if attribute.key in attributes:
            raise document.error((*path, "key"), f"{attribute.key} is defined twice")
        if attribute.payload_key is not None:
            first = payload_keys.setdefault(attribute.payload_key, attribute.key)
            if first != attribute.key:
                raise document.error(
                    (*path, "annotations", "payload_key"),
                    f"{attribute.payload_key} is the key of {first}, too",
                )
        attributes[attribute.key] = attribute
    return attributes


def _read_attribute(document: YamlDocument, path: KeyPath, entry: dict[str, Any]) -> Attribute:
    key = _text(document, path, entry, "key")
    if not _ATTRIBUTE_KEY.fullmatch(key):
        raise document.error((*path, "key"), "must be dotted lower snake case")
    notes = _annotations(document, path, entry, _ATTRIBUTE_ANNOTATIONS)
    where = (*path, "annotations")
    if not _is_one_of(notes.get("pii"), get_args(PiiClass)):
        raise document.error((*where, "pii"), f"{key} needs pii: none | pseudonymise | drop")
    pii = cast(PiiClass, notes["pii"])
    column, payload_key = notes.get("column"), notes.get("payload_key")
    if column is not None and not _is_one_of(column, get_args(Column)):
        raise document.error((*where, "column"), f"must be one of {', '.join(get_args(Column))}")
    if payload_key is not None and not _PAYLOAD_KEY.fullmatch(str(payload_key)):
        raise document.error((*where, "payload_key"), "must be camelCase")
    destinations = [value for value in (column, payload_key) if value is not None]
    if len(destinations) != (0 if pii == "drop" else 1):
        raise document.error(where, f"{key} needs a column or a payload_key (none with pii: drop)")
    if pii == "pseudonymise" and column is None:
        raise document.error(where, f"{key} is pseudonymised and so needs a column")
    if pii == "pseudonymise" and column not in _PSEUDONYM_COLUMNS:
        raise document.error(
            (*where, "column"),
            f"{key} is pseudonymised and so needs one of {', '.join(_PSEUDONYM_COLUMNS)}",
        )
    if pii != "pseudonymise" and column in _PSEUDONYM_COLUMNS:
        raise document.error(
            (*where, "pii"), f"{key} fills {column} and so needs pii: pseudonymise"
        )
    kind, members = _read_type(document, path, entry)
    if column is not None and kind != "string":
        raise document.error((*path, "type"), f"fills the column {column} and so must be string")
    minimum, maximum = _limits(document, where, notes, key, kind)
    if kind != "string":
        for note in ("pattern", "max_length"):
            if note in notes:
                raise document.error((*where, note), f"is for strings, and {key} is {kind}")
    return Attribute(
        key=key,
        type=kind,
        brief=_text(document, path, entry, "brief"),
        pii=pii,
        members=members,
        column=column,
        payload_key=payload_key,
        pattern=_pattern(document, (*where, "pattern"), notes.get("pattern")),
        max_length=_max_length(document, (*where, "max_length"), notes),
        minimum=minimum,
        maximum=maximum,
    )


def _max_length(document: YamlDocument, path: KeyPath, notes: dict[str, Any]) -> int:
    length = notes.get("max_length", DEFAULT_MAX_LENGTH)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise document.error(path, "must be a whole number from 1 on (characters)")
    return length


def _limits(
    document: YamlDocument, where: KeyPath, notes: dict[str, Any], key: str, kind: AttributeType
) -> tuple[float | None, float | None]:
    for name in ("minimum", "maximum"):
        limit = notes.get(name)
        if limit is None:
            continue
        path = (*where, name)
        if kind not in ("int", "double"):
            raise document.error(path, f"is for int and double, and {key} is {kind}")
        if (
            not isinstance(limit, int | float)
            or isinstance(limit, bool)
            or not math.isfinite(limit)
        ):
            raise document.error(path, "must be a number")
        if kind == "int" and (not isinstance(limit, int) or limit not in _INT64):
            raise document.error(path, f"must be a whole number of 64 bits, as {key} is int")
    minimum, maximum = notes.get("minimum"), notes.get("maximum")
    if minimum is not None and maximum is not None and minimum > maximum:
        raise document.error((*where, "minimum"), "is above the maximum")
    return minimum, maximum


def _read_type(
    document: YamlDocument, path: KeyPath, entry: dict[str, Any]
) -> tuple[AttributeType, tuple[str, ...]]:
    kind = entry.get("type")
    if isinstance(kind, dict) and kind.get("members"):
        listed = kind["members"] if isinstance(kind["members"], list) else [None]
        values = [item.get("value") if isinstance(item, dict) else None for item in listed]
        members = tuple(value for value in values if isinstance(value, str))
        if len(members) != len(values):
            raise document.error((*path, "type"), "every member needs a string value")
        for member in members:
            if members.count(member) > 1:
                raise document.error((*path, "type"), f"{member} stands twice")
        return "string", members
    if isinstance(kind, str) and kind in get_args(AttributeType):
        return cast(AttributeType, kind), ()
    raise document.error((*path, "type"), "must be string, int, double, boolean or members")


def _pattern(document: YamlDocument, path: KeyPath, pattern: Any) -> str | None:
    if pattern is None:
        return None
    try:
        re.compile(pattern)
    except (re.error, TypeError):
        raise document.error(path, "is not a regular expression") from None
    counts = [int(count) for pair in _REPETITION.findall(pattern) for count in pair if count]
    if _NOT_RE2.search(pattern.replace("\\\\", "")) or max(counts, default=0) > 1000:
        raise document.error(
            path,
            "uses look-around, a backreference, \\Z or more than 1000 repetitions, "
            "which RE2 does not know",
        )
    return str(pattern)


def _read_groups(
    documents: list[YamlDocument], attributes: dict[str, Attribute]
) -> dict[str, tuple[EventAttribute, ...]]:
    groups: dict[str, tuple[EventAttribute, ...]] = {}
    for document, path, entry in _entries(documents, "attribute_groups"):
        name = _text(document, path, entry, "id")
        if name in groups:
            raise document.error((*path, "id"), f"{name} is defined twice")
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
        if not _is_one_of(notes.get("class"), get_args(EventClass)):
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
    own: dict[str, EventAttribute] = {}
    grouped: dict[str, EventAttribute] = {}
    references = _list(document, (*path, "attributes"), entry.get("attributes"))
    for index, reference in enumerate(references):
        where = (*path, "attributes", index)
        if not isinstance(reference, dict) or not {"ref", "ref_group"} & reference.keys():
            raise document.error(where, "must be a mapping with ref or ref_group")
        if "ref_group" in reference:
            name = reference["ref_group"]
            if not isinstance(name, str) or name not in groups:
                raise document.error((*where, "ref_group"), "names no attribute group")
            grouped |= {item.attribute.key: item for item in groups[name]}
            continue
        item = _read_reference(document, where, reference, attributes)
        if item.attribute.key in own:
            raise document.error((*where, "ref"), f"{item.attribute.key} stands twice")
        own[item.attribute.key] = item
    # What an event says itself outranks its groups.
    yield from (grouped | own).values()


def _read_reference(
    document: YamlDocument,
    where: KeyPath,
    reference: dict[str, Any],
    attributes: dict[str, Attribute],
) -> EventAttribute:
    key = reference["ref"]
    if not isinstance(key, str) or key not in attributes:
        raise document.error((*where, "ref"), "names no attribute of the catalogue")
    level = reference.get("requirement_level", "recommended")
    if level not in ("required", "recommended", "opt_in"):
        raise document.error(
            (*where, "requirement_level"), "must be required, recommended or opt_in"
        )
    return EventAttribute(attributes[key], required=level == "required")


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


def _is_one_of(value: Any, allowed: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in allowed


def _text(document: YamlDocument, path: KeyPath, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is None:
        raise document.error((*path, key), "is missing")
    if not isinstance(value, str) or not value.strip():
        raise document.error((*path, key), "must be text; put it in quotes")
    return value
