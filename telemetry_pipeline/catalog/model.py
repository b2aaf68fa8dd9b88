"""What the catalogue says, as plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

AttributeType = Literal["string", "int", "double", "boolean"]
EventClass = Literal["technical", "business"]
PiiClass = Literal["none", "pseudonymise", "drop"]
Column = Literal[
    "event_id",
    "schema_version",
    "consent",
    "org_id_hash",
    "anonymous_user_id",
    "session_id",
    "route_pattern",
]

DEFAULT_MAX_LENGTH = 256


@dataclass(frozen=True)
class Attribute:
    """One attribute: its OTLP key, its type, and where its value goes.

    Exactly one of `column` (of product_telemetry_events) and `payload_key` is set, except for
    attributes with pii `drop`, which go nowhere. Limits are inclusive; `pattern` is RE2 and
    matches the whole value.
    """

    key: str
    type: AttributeType
    brief: str
    pii: PiiClass
    members: tuple[str, ...] = ()
    column: Column | None = None
    payload_key: str | None = None
    pattern: str | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class EventAttribute:
    """An attribute as one event uses it."""

    attribute: Attribute
    required: bool


@dataclass(frozen=True)
class Event:
    """One event of the catalogue."""

    name: str
    brief: str
    event_class: EventClass
    owner: str
    purpose: str
    schema_version: str
    attributes: tuple[EventAttribute, ...]


@dataclass(frozen=True)
class Catalog:
    """All events and attributes, in the order of the files."""

    events: tuple[Event, ...]
    attributes: tuple[Attribute, ...]
    _by_name: dict[str, Event] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_name.update({event.name: event for event in self.events})

    def event(self, name: str) -> Event | None:
        return self._by_name.get(name)

    def for_column(self, column: Column) -> tuple[Attribute, ...]:
        """The attributes that fill `column`, first choice first."""
        return tuple(item for item in self.attributes if item.column == column)
