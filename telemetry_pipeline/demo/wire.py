"""Events as they leave the demo's application: attributes of the catalogue, ids hashed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from telemetry_pipeline.demo.behaviour import FRONT_END, Occurrence, Value
from telemetry_pipeline.identity.edge import IdKind, edge_id

SCHEMA_VERSION = "2026-05-telemetry-v1"
_OLD_CLIENTS = 10  # of 256: events whose id ends below it come without a schema version


class Delivery(NamedTuple):
    """One log record on its way: when it reaches the sink, and what it says.

    Times are ns since the epoch. A `name` of None is a log record that is not an event.
    """

    delivered_ns: int
    time_ns: int
    name: str | None
    service: str
    attributes: dict[str, Value]
    body: str | None = None


class RawLine(NamedTuple):
    """A line that no SDK would write, on its way to the sink."""

    delivered_ns: int
    data: bytes


@dataclass
class EdgeIds:
    """Hashes ids at the edge, each distinct one once."""

    key_id: str
    key: bytes = field(repr=False)
    _known: dict[tuple[IdKind, str], str] = field(default_factory=dict, repr=False)

    def __call__(self, kind: IdKind, raw: str) -> str:
        known = self._known.get((kind, raw))
        if known is None:
            known = self._known[kind, raw] = edge_id(self.key_id, self.key, kind, raw)
        return known


def deliver(occurrence: Occurrence, edge_ids: EdgeIds, delivered_ns: int) -> Delivery:
    """The log record of an event that complies with the catalogue."""
    event_id = occurrence.event_id
    attributes: dict[str, Value] = {"event.id": event_id}
    if int(event_id[-2:], 16) >= _OLD_CLIENTS:
        attributes["schema.version"] = SCHEMA_VERSION
    attributes["consent.analytics"] = "granted"
    attributes["organisation.id"] = edge_ids("organisation", occurrence.organisation)
    attributes["enduser.pseudo.id"] = edge_ids("user", occurrence.user)
    attributes["session.id"] = edge_ids("session", occurrence.session)
    if occurrence.route is not None:
        # A browser knows its page's template, a server the route that it matched.
        key = "url.template" if occurrence.service == FRONT_END else "http.route"
        attributes[key] = occurrence.route
    attributes.update(occurrence.payload)
    return Delivery(
        delivered_ns, occurrence.time_ns, occurrence.name, occurrence.service, attributes
    )
