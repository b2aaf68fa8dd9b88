"""What the contract says of a shape: everything that is alike in many records.

A shape is an event's name and, in order, the keys and kinds of its attributes. A slice of tens of
thousands of records has a few dozen, so a shape is judged here, once, and statements/judge.sql
joins the outcome to every record of it and looks at values alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from telemetry_pipeline.catalog.model import Attribute, Catalog, Column, Event
from telemetry_pipeline.catalog.sql import is_listed, value_class

#: Marks a payload key of a ProductTelemetryBatch: it names an attribute of its event.
PAYLOAD_MARK = "payload/"
#: Where older emitters carry the event's name; neither stored nor counted as unknown.
NAME_KEYS = ("otel.event.name", "event.name")


_NUMBER_OF_KIND = {"stringValue": 1, "intValue": 2, "doubleValue": 3, "boolValue": 4}
_KIND_OF_TYPE = {"string": 1, "int": 2, "double": 3, "boolean": 4}
#: A pattern of which every match can stand between quotes as it is.
_PLAIN_PATTERN = re.compile(
    r"(?:\[(?:a-z|A-Z|0-9|[A-Za-z0-9_.:@/ ](?!-))*-?\]"
    r"|[A-Za-z0-9_/:@-]|\\\.|[()|?*+]|\{\d*,?\d*\})*"
)
_PLAIN_TEXT = re.compile(r"[^\x00-\x1f\"\\\x7f-\U0010ffff]*")


@dataclass(frozen=True)
class Shape:
    """A row of the temporary table `shapes`. Positions count from 1; 0 is none.

    `checks` has an item for each attribute: 0 no check, 1 listed, 4 otherwise; and 1 more where it
    goes into a plain payload, 2 more into a mixed one. Listed values (all but numbers and free
    strings) are told by one expression. `listed_prefixes` has an item for each listed attribute,
    `other_*` for each that is checked otherwise, `checked_keys` for both, in this order;
    `payload_pieces` and `mixed_*` for each that goes into the payload.
    """

    shape: int
    name: str
    event_name: str
    shape_reason: str
    letter_keys: list[str]
    kinds: list[str]
    wrong_kind_key: str
    first_missing: str
    org_position: int
    user_position: int
    session_position: int
    org_key: str
    user_key: str
    session_key: str
    other_id_positions: list[int]
    other_id_keys: list[str]
    route_position: int
    consent_position: int
    event_id_position: int
    schema_version_position: int
    default_schema_version: str
    checks: list[int]
    listed_prefixes: list[str]
    other_positions: list[int]
    other_prefixes: list[str]
    checked_keys: list[str]
    is_plain: int
    payload_pieces: list[str]
    payload_tail: str
    mixed_pieces: list[str]
    mixed_kinds: list[int]
    unknown_attributes: int

    def row(self) -> list[Any]:
        return [getattr(self, item.name) for item in fields(self)]


_TYPES = {
    "shape": "UInt64",
    "unknown_attributes": "UInt32",
    "is_plain": "UInt8",
    "checks": "Array(UInt8)",
    "mixed_kinds": "Array(UInt8)",
    "other_id_positions": "Array(UInt16)",
    "other_positions": "Array(UInt16)",
}
_OTHER_TYPES = {"int": "UInt16", "str": "LowCardinality(String)", "list[str]": "Array(String)"}
#: Column -> ClickHouse type of the temporary table.
COLUMNS = {
    item.name: _TYPES.get(item.name) or _OTHER_TYPES[str(item.type)] for item in fields(Shape)
}


@dataclass(frozen=True)
class _Present:
    """An attribute that a record of the shape carries, the first of its key."""

    position: int
    key: str
    kind: int
    attribute: Attribute | None


@dataclass(frozen=True)
class ShapeJudge:
    """Judges shapes by one catalogue."""

    catalog: Catalog

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {item.key: number for number, item in enumerate(self.catalog.attributes, start=1)}

    @cached_property
    def _attributes(self) -> dict[str, Attribute]:
        return {item.key: item for item in self.catalog.attributes}

    def judge(self, shape: int, name: str, keys: Sequence[str], kinds: Sequence[str]) -> Shape:
        """The row for a shape. An attribute without a kind has no value and counts as absent; of
        an attribute that stands twice, the first with a value counts."""
        event = self.catalog.event(name)
        named = [self._resolve(event, key) for key in keys]
        present = self._present(named, kinds)
        own = _own_attributes(event)
        used = [item for item in present if item.key in own]
        wrong_kind = next((item for item in used if _has_wrong_kind(item)), None)
        missing = _first_missing(event, {item.key for item in present})
        ids = [item for item in present if item.attribute and item.attribute.pii == "pseudonymise"]
        org = self._place(present, "org_id_hash")
        user = self._place(present, "anonymous_user_id")
        session = self._place(present, "session_id")
        chosen = {org.position, user.position, session.position}
        others = [item for item in ids if item.position not in chosen]
        checked = [item for item in used if _is_checked(item) and not _has_wrong_kind(item)]
        listed = [item for item in checked if _is_listed(item)]
        unlisted = [item for item in checked if item not in listed]
        return Shape(
            shape=shape,
            name=name,
            # A name outside the catalogue is free text and may say anything: it stays in a
            # dead letter's payload.
            event_name=name if event else "",
            shape_reason=_reason(name, event, wrong_kind, missing),
            letter_keys=named,
            kinds=list(kinds),
            wrong_kind_key=wrong_kind.key if wrong_kind else "",
            first_missing=missing,
            org_position=org.position,
            user_position=user.position,
            session_position=session.position,
            org_key=org.key,
            user_key=user.key,
            session_key=session.key,
            other_id_positions=[item.position for item in others],
            other_id_keys=[item.key for item in others],
            route_position=self._place(present, "route_pattern").position,
            consent_position=self._place(present, "consent").position,
            event_id_position=self._place(present, "event_id").position,
            schema_version_position=self._place(present, "schema_version").position,
            default_schema_version=event.schema_version if event else "",
            listed_prefixes=[self._prefix(item) for item in listed],
            other_positions=[item.position for item in unlisted],
            other_prefixes=[self._prefix(item) for item in unlisted],
            checked_keys=[item.key for item in (*listed, *unlisted)],
            unknown_attributes=sum(
                item.key not in own and item.key not in NAME_KEYS for item in present
            ),
            **_payload(checked, len(keys)),
        )

    def _resolve(self, event: Event | None, key: str) -> str:
        """The attribute that a payload key names in its event; any other key is itself."""
        if not key.startswith(PAYLOAD_MARK):
            return key
        wanted = key.removeprefix(PAYLOAD_MARK)
        for item in event.attributes if event else ():
            if item.attribute.payload_key == wanted:
                return item.attribute.key
        return key

    def _present(self, keys: Sequence[str], kinds: Sequence[str]) -> list[_Present]:
        found: dict[str, _Present] = {}
        for position, (key, kind) in enumerate(zip(keys, kinds, strict=True), start=1):
            if kind and key and key not in found:
                number = _NUMBER_OF_KIND.get(kind, 9)
                found[key] = _Present(position, key, number, self._attributes.get(key))
        return list(found.values())

    def _place(self, present: Sequence[_Present], column: Column) -> _Present:
        """The attribute that fills a column: of several, the one the catalogue names first."""
        for attribute in self.catalog.for_column(column):
            for item in present:
                if item.key == attribute.key:
                    return item
        return _Present(0, "", 0, None)

    def _prefix(self, item: _Present) -> str:
        """What stands before a value where it is looked up: its class and attribute."""
        assert item.attribute is not None
        of_int = item.attribute.type == "double" and item.kind == _KIND_OF_TYPE["int"]
        return f"{'n' if of_int else value_class(item.attribute)}{self._numbers[item.key]}="


def _own_attributes(event: Event | None) -> dict[str, Attribute]:
    return {item.attribute.key: item.attribute for item in event.attributes} if event else {}


def _is_checked(item: _Present) -> bool:
    """Ids, consent and the event's id have judgements of their own; the rest is never stored."""
    attribute = item.attribute
    return (
        attribute is not None
        and attribute.pii == "none"
        and attribute.column not in ("consent", "event_id")
    )


def _has_wrong_kind(item: _Present) -> bool:
    attribute = item.attribute
    if attribute is None or attribute.pii != "none" or attribute.column == "consent":
        return False
    wanted = _KIND_OF_TYPE[attribute.type]
    return item.kind != wanted and not (attribute.type == "double" and item.kind == 2)


def _first_missing(event: Event | None, present: set[str]) -> str:
    for item in event.attributes if event else ():
        if item.required and item.attribute.key not in present:
            return item.attribute.key
    return ""


def _reason(name: str, event: Event | None, wrong_kind: _Present | None, missing: str) -> str:
    """What is wrong with every record of the shape, first things first."""
    if not name:
        return "not_an_event"
    if event is None:
        return "unknown_event"
    if wrong_kind is not None:
        return "invalid_attribute"
    return "missing_attribute" if missing else ""


def _payload(checked: Sequence[_Present], length: int) -> dict[str, Any]:
    """How payload_json is put together.

    A plain payload has only values that need no look: each piece holds the quotes and commas that
    stand before its value, and the tail what stands behind the last. In a mixed one, each value is
    written by its kind: 1 a string, 3 a double, others as they are.
    """
    members = [item for item in checked if item.attribute and item.attribute.payload_key]
    is_plain = all(_is_plain(item) for item in members)
    checks = [0] * length
    for item in checked:
        checks[item.position - 1] = 1 if _is_listed(item) else 4
        if item in members:
            checks[item.position - 1] += 1 if is_plain else 2
    pieces, before = [], "{"
    for item in members:
        assert item.attribute is not None
        quote = '"' if item.kind == 1 else ""
        pieces.append(f'{before}"{item.attribute.payload_key}":{quote}')
        before = f"{quote},"
    return {
        "checks": checks,
        "is_plain": int(is_plain),
        "payload_pieces": pieces if is_plain else [],
        "payload_tail": (before.removesuffix(",") if members else "{") + "}",
        "mixed_pieces": []
        if is_plain
        else [f'"{item.attribute.payload_key}":' for item in members if item.attribute],
        "mixed_kinds": [] if is_plain else [item.kind for item in members],
    }


def _is_listed(item: _Present) -> bool:
    return item.attribute is not None and is_listed(item.attribute)


def _is_plain(item: _Present) -> bool:
    attribute = item.attribute
    assert attribute is not None
    if attribute.type == "double":
        return item.kind == 2
    if attribute.type != "string":
        return True
    if attribute.members:
        return all(_PLAIN_TEXT.fullmatch(member) for member in attribute.members)
    return attribute.pattern is not None and _PLAIN_PATTERN.fullmatch(attribute.pattern) is not None
