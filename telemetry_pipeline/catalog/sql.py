"""Compiles the catalogue into the SQL fragments that ingest/statements/stage.sql is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from telemetry_pipeline.catalog.model import Attribute, AttributeType, Catalog, Column

#: An id that was hashed at the edge: `e<edge key id>_` and a SHA-256 in lower-case hex.
EDGE_ID_PATTERN = "^e[a-z0-9]{1,16}_[0-9a-f]{64}$"

_CHECKS: dict[AttributeType, int] = {"int": 2, "double": 3, "boolean": 4}
_COLUMN_TYPES = {"int": "Int64", "double": "Float64"}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def catalog_fragments(catalog: Catalog) -> dict[str, str]:
    """Placeholder name -> SQL text. Attribute and event numbers count from 1; 0 is none."""
    ids = {attribute.key: index for index, attribute in enumerate(catalog.attributes, start=1)}
    required = [
        [item.attribute.key for item in event.attributes if item.required]
        for event in catalog.events
    ]
    attributes = catalog.attributes
    return {
        "usage": _number_array(_usage(catalog)),
        "attribute_count": str(len(attributes)),
        "attribute_ids": _number_array(ids.values()),
        "attribute_keys": string_array(item.key for item in attributes),
        "attribute_checks": _number_array(_check(item) for item in attributes),
        "attribute_payload_keys": string_array(item.payload_key or "" for item in attributes),
        "attribute_max_lengths": _number_array(item.max_length for item in attributes),
        "attribute_int_minimums": _limits(attributes, "int", "minimum", str(_INT64_MIN)),
        "attribute_int_maximums": _limits(attributes, "int", "maximum", str(_INT64_MAX)),
        "attribute_double_minimums": _limits(attributes, "double", "minimum", "-inf"),
        "attribute_double_maximums": _limits(attributes, "double", "maximum", "inf"),
        "event_names": string_array(event.name for event in catalog.events),
        "event_required_counts": _number_array(len(keys) for keys in required),
        "event_required_keys": string_array(",".join(keys) for keys in required),
        "event_schema_versions": string_array(event.schema_version for event in catalog.events),
        "string_values": quote(_string_values(attributes, ids)),
        "org_position": _first_present(catalog, ids, "org_id_hash"),
        "user_position": _first_present(catalog, ids, "anonymous_user_id"),
        "session_position": _first_present(catalog, ids, "session_id"),
        "route_position": _first_present(catalog, ids, "route_pattern"),
        "consent_position": _first_present(catalog, ids, "consent"),
        "event_id_position": _first_present(catalog, ids, "event_id"),
        "schema_version_position": _first_present(catalog, ids, "schema_version"),
        "edge_id_pattern": quote(EDGE_ID_PATTERN),
        # Never empty: an empty set is no SQL. No attribute has the id -1.
        "identifier_ids": ", ".join(
            str(number)
            for number in (
                -1,
                *(ids[item.key] for item in attributes if item.pii == "pseudonymise"),
            )
        ),
        "unstored_keys": ", ".join(
            quote(key) for key in ("", *(item.key for item in attributes if item.pii == "drop"))
        ),
    }


def _usage(catalog: Catalog) -> Iterator[int]:
    """For no event (number 0) and then each event, for each attribute: 0 not its own, 1 its own,
    2 required."""
    yield from (0 for _ in catalog.attributes)
    for event in catalog.events:
        required = {item.attribute.key: item.required for item in event.attributes}
        for attribute in catalog.attributes:
            yield 1 + required[attribute.key] if attribute.key in required else 0


def _check(attribute: Attribute) -> int:
    """How stage.sql looks at the attribute's values: 0 not at all, 1 string of a known shape,
    2 int, 3 double, 4 boolean, 5 any string up to its length."""
    if attribute.pii != "none" or attribute.column == "consent":
        return 0  # ids and consent have judgements of their own, the rest is never stored
    if attribute.type == "string":
        return 1 if attribute.members or attribute.pattern else 5
    return _CHECKS[attribute.type]


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


def _string_values(attributes: tuple[Attribute, ...], ids: dict[str, int]) -> str:
    """One expression for every string value that is allowed, over `<attribute id>=<value>`.

    One, because the engine then matches it once for each distinct value of a block; a check for
    each attribute would look at every value of every attribute.
    """
    by_values: dict[str, list[str]] = {}
    for item in attributes:
        if _check(item) == 1:
            by_values.setdefault(_allowed_values(item), []).append(str(ids[item.key]))
    branches = (f"(?:{'|'.join(used_by)})=(?:{values})" for values, used_by in by_values.items())
    return f"^(?:{'|'.join(branches)})$"


def _allowed_values(attribute: Attribute) -> str:
    pattern = attribute.pattern or "(?s:.*)"
    if not attribute.members:
        return pattern
    members = (item for item in attribute.members if re.fullmatch(pattern, item))
    return "|".join(re.escape(member) for member in members)


def _first_present(catalog: Catalog, ids: dict[str, int], column: Column) -> str:
    """Where in a record the first attribute for `column` stands that it carries; 0 for none."""
    wanted = [ids[attribute.key] for attribute in catalog.for_column(column)]
    if not wanted:
        return "0"
    *others, last = wanted
    branches = "".join(f"has(key_ids, {item}), indexOf(key_ids, {item}), " for item in others)
    found = f"indexOf(key_ids, {last})"
    return f"multiIf({branches}{found})" if others else found
