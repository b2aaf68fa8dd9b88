"""Compiles the catalogue into the SQL fragments that ingest/statements/stage.sql is made of."""

from __future__ import annotations

from collections.abc import Iterable

from telemetry_pipeline.catalog.model import Attribute, AttributeType, Catalog, Column

#: An id that was hashed at the edge: `e<edge key id>_` and a SHA-256 in lower-case hex.
EDGE_ID_PATTERN = "^e[a-z0-9]{1,16}_[0-9a-f]{64}$"

_KINDS = {"string": 1, "int": 2, "double": 3, "boolean": 4}
_COLUMN_TYPES = {"int": "Int64", "double": "Float64"}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def catalog_fragments(catalog: Catalog) -> dict[str, str]:
    """Placeholder name -> SQL text. Attribute and pair ids count from 1; 0 means unknown."""
    ids = {attribute.key: index for index, attribute in enumerate(catalog.attributes, start=1)}
    pairs = [
        (f"{event.name}\n{item.attribute.key}", ids[item.attribute.key], item.required)
        for event in catalog.events
        for item in event.attributes
    ]
    required = [
        [item.attribute.key for item in event.attributes if item.required]
        for event in catalog.events
    ]
    attributes = catalog.attributes
    return {
        "pairs": string_array(pair for pair, _, _ in pairs),
        "pair_ids": _number_array(range(1, len(pairs) + 1)),
        "pair_attributes": _number_array(attribute for _, attribute, _ in pairs),
        "pair_required": _number_array(int(needed) for _, _, needed in pairs),
        "attribute_keys": string_array(item.key for item in attributes),
        "attribute_kinds": _number_array(_KINDS[item.type] for item in attributes),
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
        "unchecked_attributes": _id_set(
            ids[item.key] for item in attributes if item.pii != "none" or item.column == "consent"
        ),
        "enum_check": _enum_check(attributes, ids),
        "pattern_check": _pattern_check(attributes, ids),
        "org_key": _first_present(catalog, "org_id_hash"),
        "user_key": _first_present(catalog, "anonymous_user_id"),
        "session_key": _first_present(catalog, "session_id"),
        "route_key": _first_present(catalog, "route_pattern"),
        "consent_key": _first_present(catalog, "consent"),
        "event_id_key": _first_present(catalog, "event_id"),
        "schema_version_key": _first_present(catalog, "schema_version"),
        "edge_id_pattern": quote(EDGE_ID_PATTERN),
        "identifier_keys": string_array(
            item.key for item in attributes if item.pii == "pseudonymise"
        ),
        "unstored_keys": ", ".join(
            quote(key) for key in ("", *(item.key for item in attributes if item.pii == "drop"))
        ),
    }


def quote(text: str) -> str:
    """A ClickHouse string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def string_array(values: Iterable[str]) -> str:
    return "[" + ", ".join(quote(value) for value in values) + "]"


def _number_array(values: Iterable[float]) -> str:
    return "[" + ", ".join(str(value) for value in values) + "]"


def _id_set(values: Iterable[int]) -> str:
    return "(" + ", ".join(str(value) for value in (*values, -1)) + ")"


def _limits(
    attributes: tuple[Attribute, ...], kind: AttributeType, limit: str, otherwise: str
) -> str:
    """The limits of the attributes of one type. Cast from text: literals have a type of their own,
    and an array of whole and broken numbers has none."""
    limits = [getattr(item, limit) if item.type == kind else None for item in attributes]
    texts = (otherwise if value is None else repr(value) for value in limits)
    return f"CAST({string_array(texts)}, 'Array({_COLUMN_TYPES[kind]})')"


def _enum_check(attributes: tuple[Attribute, ...], ids: dict[str, int]) -> str:
    enums = [item for item in attributes if item.members]
    if not enums:
        return "1"
    members = [f"{ids[item.key]}={member}" for item in enums for member in item.members]
    listed = ", ".join(quote(member) for member in members)
    return (
        f"id NOT IN {_id_set(ids[item.key] for item in enums)} "
        f"OR concat(toString(id), '=', text) IN ({listed})"
    )


def _pattern_check(attributes: tuple[Attribute, ...], ids: dict[str, int]) -> str:
    by_pattern: dict[str, list[int]] = {}
    for item in attributes:
        if item.pattern is not None:
            by_pattern.setdefault(item.pattern, []).append(ids[item.key])
    if not by_pattern:
        return "1"
    branches = "".join(
        f"id IN {_id_set(used_by)}, match(text, {quote(f'^(?:{pattern})$')}), "
        for pattern, used_by in by_pattern.items()
    )
    return f"multiIf({branches}1)"


def _first_present(catalog: Catalog, column: Column) -> str:
    """The key of the first attribute for `column` that a record carries, or ''."""
    keys = [attribute.key for attribute in catalog.for_column(column)]
    if not keys:
        return "''"
    branches = "".join(f"has(keys, {quote(key)}), {quote(key)}, " for key in keys)
    return f"multiIf({branches}'')"
