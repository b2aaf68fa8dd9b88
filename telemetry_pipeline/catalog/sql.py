"""Compiles the catalogue into the SQL fragments that ingest's statements are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable

from telemetry_pipeline.catalog.model import Attribute, AttributeType, Catalog

#: An id that was hashed at the edge: `e<edge key id>_` and a SHA-256 in lower-case hex.
EDGE_ID_PATTERN = "^e[a-z0-9]{1,16}_[0-9a-f]{64}$"

_COLUMN_TYPES = {"int": "Int64", "double": "Float64"}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def catalog_fragments(catalog: Catalog) -> dict[str, str]:
    """Placeholder name -> SQL text. Attributes count from 1, in the order of the catalogue."""
    attributes = catalog.attributes
    event_ids = catalog.for_column("event_id")
    return {
        "attribute_max_lengths": _number_array(item.max_length for item in attributes),
        "attribute_int_minimums": _limits(attributes, "int", "minimum", str(_INT64_MIN)),
        "attribute_int_maximums": _limits(attributes, "int", "maximum", str(_INT64_MAX)),
        "attribute_double_minimums": _limits(attributes, "double", "minimum", "-inf"),
        "attribute_double_maximums": _limits(attributes, "double", "maximum", "inf"),
        "allowed_values": quote(_allowed_values_of(attributes)),
        "event_id_key": quote(event_ids[0].key if event_ids else ""),
        "event_id_max_length": str(event_ids[0].max_length if event_ids else 0),
        "edge_id_pattern": quote(EDGE_ID_PATTERN),
        "unstored_keys": ", ".join(
            quote(key) for key in ("", *(item.key for item in attributes if item.pii == "drop"))
        ),
    }


def value_class(attribute: Attribute) -> str:
    """How the attribute's values are checked: s string of a known shape, f any string, i int,
    d double (n where it came as an int), b boolean."""
    if attribute.type == "string":
        return "s" if attribute.members or attribute.pattern else "f"
    return {"int": "i", "double": "d", "boolean": "b"}[attribute.type]


def quote(text: str) -> str:
    """A ClickHouse string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def string_array(values: Iterable[str]) -> str:
    return "[" + ", ".join(quote(value) for value in values) + "]"


def _number_array(values: Iterable[float]) -> str:
    return "[" + ", ".join(str(value) for value in values) + "]"


def _limits(
    attributes: tuple[Attribute, ...], kind: AttributeType, limit: str, otherwise: str
) -> str:
    """The limits of the attributes of one type. Cast from text: literals have a type of their own,
    and an array of whole and broken numbers has none."""
    limits = [getattr(item, limit) if item.type == kind else None for item in attributes]
    texts = (otherwise if value is None else repr(value) for value in limits)
    return f"CAST({string_array(texts)}, 'Array({_COLUMN_TYPES[kind]})')"


def _allowed_values_of(attributes: tuple[Attribute, ...]) -> str:
    """One expression for the syntax of every value, over `<class><attribute number>=<value>`.

    One, because the engine then matches it once for each distinct value of a block.
    """
    by_values: dict[str, list[str]] = {}
    for number, item in enumerate(attributes, start=1):
        if value_class(item) == "s":
            by_values.setdefault(_allowed_values(item), []).append(str(number))
    strings = (f"s(?:{'|'.join(used_by)})=(?:{values})" for values, used_by in by_values.items())
    integer = "(?:0|-?[1-9][0-9]*)"
    others = (f"[in][0-9]+={integer}", "[fd][0-9]+=(?s:.*)", "b[0-9]+=(?:true|false)")
    return f"^(?:{'|'.join((*strings, *others))})$"


def _allowed_values(attribute: Attribute) -> str:
    pattern = attribute.pattern or "(?s:.*)"
    if not attribute.members:
        return pattern
    members = (item for item in attribute.members if re.fullmatch(pattern, item))
    return "|".join(re.escape(member) for member in members)
