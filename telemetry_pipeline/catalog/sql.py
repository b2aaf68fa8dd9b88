"""Compiles the catalogue into the SQL fragments that ingest's statements are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable

from telemetry_pipeline.catalog.model import Attribute, Catalog

#: An id that was hashed at the edge: `e<edge key id>_` and a SHA-256 in lower-case hex.
EDGE_ID_PATTERN = "^e[a-z0-9]{1,16}_[0-9a-f]{64}$"

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def catalog_fragments(catalog: Catalog) -> dict[str, str]:
    """Placeholder name -> SQL text. Attributes count from 1, in the order of the catalogue."""
    attributes = catalog.attributes
    event_ids = catalog.for_column("event_id")
    return {
        "listed_values": quote(_listed_values(attributes)),
        "other_value_is_allowed": _other_value_is_allowed(attributes),
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


def is_listed(attribute: Attribute) -> bool:
    """Whether one expression says all about the attribute's values, their length included."""
    if attribute.type == "boolean":
        return True
    if attribute.type != "string":
        return False
    if attribute.members:
        return all(len(member) <= attribute.max_length for member in attribute.members)
    return attribute.pattern is not None and _longest(attribute.pattern) <= attribute.max_length


def _longest(pattern: str) -> int:
    """How many characters a match of the pattern has at most."""
    # Python's own parser knows it; what it does not understand has no end.
    try:
        return int(re._parser.parse(pattern).getwidth()[1])  # type: ignore[attr-defined]
    except re.error:
        return _INT64_MAX


def _listed_values(attributes: tuple[Attribute, ...]) -> str:
    """One expression for every listed value, over `<class><attribute number>=<value>`.

    One, because the engine then matches it once for each distinct value of a block.
    """
    by_values: dict[str, list[str]] = {}
    for number, item in enumerate(attributes, start=1):
        if is_listed(item):
            values = "true|false" if item.type == "boolean" else _allowed_values(item)
            by_values.setdefault(values, []).append(f"{value_class(item)}{number}")
    branches = (f"(?:{'|'.join(used_by)})=(?:{values})" for values, used_by in by_values.items())
    return f"^(?:{'|'.join(branches)})$"


def _other_value_is_allowed(attributes: tuple[Attribute, ...]) -> str:
    """A condition on the value `text` of the attribute that `prefix` names, for all others."""
    by_check: dict[str, list[str]] = {}
    for number, item in enumerate(attributes, start=1):
        if is_listed(item):
            continue
        by_check.setdefault(_check(item), []).append(f"{value_class(item)}{number}=")
        if item.type == "double":
            by_check.setdefault(_check_int_for_double(item), []).append(f"n{number}=")
    branches = (f"prefix IN ({_texts(names)}), {check}" for check, names in by_check.items())
    return f"multiIf({', '.join((*branches, '0'))})" if by_check else "1"


def _check(item: Attribute) -> str:
    if item.type == "int":
        limits = (
            f"BETWEEN {_whole(item.minimum, _INT64_MIN)} AND {_whole(item.maximum, _INT64_MAX)}"
        )
        return f"{_IS_INT} AND ifNull(toInt64OrNull(text) {limits}, 0)"
    if item.type == "double":
        return f"ifNull(isFinite(toFloat64OrNull(text)), 0){_range(item)}"
    length = f"isValidUTF8(text) AND lengthUTF8(text) <= {item.max_length}"
    return f"match(text, {quote(f'^(?:{item.pattern})$')}) AND {length}" if item.pattern else length


def _check_int_for_double(item: Attribute) -> str:
    return f"{_IS_INT} AND isNotNull(toInt64OrNull(text)){_range(item)}"


#: Decimal, as OTLP writes 64-bit integers.
_IS_INT = "match(text, '^(?:0|-?[1-9][0-9]*)$')"


def _range(item: Attribute) -> str:
    limits = (("<", item.minimum), (">", item.maximum))
    return "".join(
        f" AND NOT (toFloat64OrZero(text) {sign} {limit!r})"
        for sign, limit in limits
        if limit is not None
    )


def _whole(limit: float | None, otherwise: int) -> int:
    return otherwise if limit is None else int(limit)


def _texts(values: Iterable[str]) -> str:
    return string_array(values).strip("[]")


def _allowed_values(attribute: Attribute) -> str:
    pattern = attribute.pattern or "(?s:.*)"
    if not attribute.members:
        return pattern
    members = (item for item in attribute.members if re.fullmatch(pattern, item))
    return "|".join(re.escape(member) for member in members)
