"""OTLP batches as hypothesis makes them: mostly good events of the catalogue, and near misses.

A batch is a tree of opentelemetry-proto-json's messages; as_json and as_protobuf write one down.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st
from log_records import DAY_MS, edge
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto_json.common.v1.common import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto_json.logs.v1.logs import LogRecord, LogsData, ResourceLogs, ScopeLogs
from opentelemetry.proto_json.resource.v1.resource import Resource
from plain_judge import Policy

NOW_MS = int(time.time() * 1000)
HOUR_AGO = NOW_MS - 3_600_000
MS = 1_000_000

# -- writing a batch down ----------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How a producer happens to write JSON; none of it may matter."""

    escapes_unicode: bool = True
    has_spaces: bool = False
    reverses_keys: bool = False
    writes_numbers: bool = False  # 64-bit integers as numbers instead of strings
    shortens_floats: bool = False  # 5.0 as 5, as Go does


@dataclass(frozen=True)
class Batch:
    """One export request, and the style it is written in where that is JSON."""

    message: LogsData
    style: Style = Style()

    def __repr__(self) -> str:
        """Short, because hypothesis prints it; `written` is for people."""
        records = [len(s.log_records) for r in self.message.resource_logs for s in r.scope_logs]
        return f"Batch(of {records} records)"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis prints every field of a dataclass otherwise

    @property
    def written(self) -> str:
        text = as_json(replace(self, style=Style())).decode().strip()
        return f"{text[:3000]}{'…' * (len(text) > 3000)} in {self.style}"


def as_json(batch: Batch) -> bytes:
    """One line of OTLP/JSON."""
    style = batch.style
    text = json.dumps(
        _styled(batch.message.to_dict(), style),
        ensure_ascii=style.escapes_unicode,
        separators=(", ", ": ") if style.has_spaces else (",", ":"),
        allow_nan=False,
    )
    return text.encode() + b"\n"


_INTEGERS = ("intValue", "timeUnixNano", "observedTimeUnixNano")


def _styled(node: Any, style: Style) -> Any:
    if isinstance(node, list):
        return [_styled(item, style) for item in node]
    if not isinstance(node, dict):
        return node
    items = list(node.items())
    if style.reverses_keys:
        items.reverse()
    return {key: _styled_value(key, value, style) for key, value in items}


def _styled_value(key: str, value: Any, style: Style) -> Any:
    if key in _INTEGERS and style.writes_numbers:
        return int(value)
    if key == "doubleValue" and style.shortens_floats and isinstance(value, float):
        is_short = value.is_integer() and abs(value) < 1e21
        return int(value) if is_short and math.copysign(1, value) > 0 else value
    return _styled(value, style)


def as_protobuf(batch: Batch) -> bytes:
    """One ExportLogsServiceRequest behind its length as a varint."""
    request = ExportLogsServiceRequest()
    for resource_logs in batch.message.resource_logs:
        in_resource = request.resource_logs.add()
        if resource_logs.resource is not None:
            in_resource.resource.SetInParent()
            _add_attributes(in_resource.resource.attributes, resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            in_scope = in_resource.scope_logs.add()
            if scope_logs.scope is not None:
                in_scope.scope.name = scope_logs.scope.name or ""
            for record in scope_logs.log_records:
                _fill_record(in_scope.log_records.add(), record)
    return framed(request.SerializeToString())


def framed(message: bytes) -> bytes:
    """A message behind its length as a varint."""
    length, prefix = len(message), bytearray()
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(prefix) + bytes([length]) + message


def _fill_record(target: Any, record: LogRecord) -> None:
    target.time_unix_nano = record.time_unix_nano or 0
    target.observed_time_unix_nano = record.observed_time_unix_nano or 0
    target.severity_number = int(record.severity_number or 0)
    target.event_name = record.event_name or ""
    if record.body is not None:
        _fill_value(target.body, record.body)
    _add_attributes(target.attributes, record.attributes)


def _add_attributes(target: Any, attributes: list[KeyValue]) -> None:
    for attribute in attributes:
        added = target.add()
        added.key = attribute.key or ""
        if attribute.value is not None:
            _fill_value(added.value, attribute.value)


def _fill_value(target: common_pb2.AnyValue, value: AnyValue) -> None:
    target.SetInParent()
    if value.array_value is not None:
        target.array_value.SetInParent()
        for item in value.array_value.values:
            _fill_value(target.array_value.values.add(), item)
    elif value.kvlist_value is not None:
        target.kvlist_value.SetInParent()
        _add_attributes(target.kvlist_value.values, value.kvlist_value.values)
    else:
        for name in ("string_value", "int_value", "double_value", "bool_value", "bytes_value"):
            if (plain := getattr(value, name)) is not None:
                setattr(target, name, plain)


# -- values ------------------------------------------------------------------------------------


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


TEXTS = st.sampled_from(
    [
        "",
        " ",
        "x",
        "null",
        "0",
        "3",
        "true",
        "granted",
        "page",
        "ä🙂\u2028",
        "line\nbreak\r\t\x00\x7f",
        "'; DROP TABLE raw.landing --",
        "quotes ' \" ` \\ {{pairs}} {batch_id:UInt64}",
        '{"resourceLogs":[',
        "somebody@example.com",
        "y" * 257,
    ]
) | st.text(max_size=8)
INTEGERS = st.sampled_from([0, 1, -1, 100, 101, 1000, 1001, 2**53 + 1, 2**63 - 1, -(2**63)])
DOUBLES = st.sampled_from(
    [0.0, -0.0, 0.1, 0.1 + 0.2, 1.5, 5e-324, 1e15, 1e20, 1e300, math.inf, -math.inf, math.nan]
) | st.floats(width=64)
LEAVES = st.one_of(
    TEXTS.map(text),
    INTEGERS.map(lambda value: AnyValue(int_value=value)),
    DOUBLES.map(lambda value: AnyValue(double_value=value)),
    st.booleans().map(lambda value: AnyValue(bool_value=value)),
    st.binary(max_size=4).map(lambda value: AnyValue(bytes_value=value)),
)
VALUES = LEAVES | st.recursive(
    LEAVES | st.just(AnyValue()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: AnyValue(array_value=ArrayValue(items))),
        st.lists(st.builds(KeyValue, TEXTS, inner), max_size=3).map(
            lambda items: AnyValue(kvlist_value=KeyValueList(items))
        ),
    ),
    max_leaves=4,
)
NOTHING = st.sampled_from([None, AnyValue()])

# -- people, ids, times ------------------------------------------------------------------------

ERASED_USER, ERASED_ORGANISATION, ERASED_SESSION = (
    edge(kind, "erased") for kind in ("user", "organisation", "session")
)
WITHDRAWN_USER, WITHDRAWN_SESSION = (edge(kind, "withdrawn") for kind in ("user", "session"))

_GOOD_IDS = {
    "organisation.id": [edge("organisation", 1), edge("organisation", 2)],
    "enduser.pseudo.id": [edge("user", 1), edge("user", 2), edge("user", 3)],
    "user.id": [edge("user", 1), edge("user", 4)],
    "session.id": [edge("session", 1), edge("session", 2), edge("user", 1)],
}
_GONE_IDS = {
    "organisation.id": [ERASED_ORGANISATION],
    "enduser.pseudo.id": [ERASED_USER, WITHDRAWN_USER],
    "user.id": [ERASED_USER, WITHDRAWN_USER],
    "session.id": [ERASED_SESSION, WITHDRAWN_SESSION],
}
RAW_IDS = st.sampled_from(
    [
        "",
        "null",
        "guest",
        "4711",
        "somebody@example.com",
        edge("user", 1)[3:],
        edge("user", 1)[:-1],
        edge("user", 1) + "0",
        edge("user", 1) + "\n",
        "\x00" + edge("user", 1),
        edge("user", 1).upper(),
        "e_" + "0" * 64,
        "e" + "a" * 17 + "_" + "0" * 64,
        "i" * 10_000,
    ]
)
#: Few, so that they repeat within a slice and across slices.
EVENT_IDS = st.sampled_from(
    [
        *(f"01931f6e-7a3c-7c2e-9d55-2f2f0c1f7a{number:02x}" for number in range(12)),
        "01931F6E-7A3C-7C2E-9D55-2F2F0C1F7A01",
        "order-4711",
        "order-4711 ",
        "00000000-0000-0000-0000-000000000000",
        "01931f6e-7a3c-7c2e-9d55-2f2f0c1f7a0g",
        "01931f6e-7a3c-7c2e-9d55-2f2f0c1f7a01 ",
        "01931f6e-7a3c-7c2e-9d55-2f2f0c1f7a0",
        "{01931f6e-7a3c-7c2e-9d55-2f2f0c1f7a01}",
        "01931f6e7a3c7c2e9d552f2f0c1f7a01",
        "",
    ]
)
_SECOND, _HOUR = 1000 * MS, 3_600_000 * MS
_DAY = DAY_MS * MS
_NOW = NOW_MS * MS
GOOD_TIMES = st.sampled_from(
    [
        _NOW - _HOUR,
        _NOW - _HOUR + MS,
        _NOW - _HOUR + 400_000,  # the same millisecond
        _NOW - _DAY,
        _NOW - 2 * _DAY,
        _NOW - 9 * _DAY,
        _NOW - 40 * _DAY,
        _NOW - 178 * _DAY,
        _NOW + 60 * _SECOND,
    ]
)
ODD_TIMES = st.sampled_from(
    [
        0,
        MS,
        _NOW - 179 * _DAY - _HOUR,
        _NOW - 730 * _DAY,
        _NOW + _HOUR,
        _NOW + _DAY,
        _NOW + 3650 * _DAY,
        2**63 - 1,
        2**63,
        10_413_791_999 * _SECOND,
        2**64 - 1,
    ]
)


# -- records -----------------------------------------------------------------------------------


def valid_values(policy: Policy, key: str) -> st.SearchStrategy[AnyValue]:
    """Values that the catalogue takes for an attribute, its limits among them."""
    attribute = policy.attributes[key]
    limits = attribute["annotations"]
    if key in _GOOD_IDS:
        return st.sampled_from(_GOOD_IDS[key]).map(text)
    if key == "event.id":
        return EVENT_IDS.map(text)
    if isinstance(attribute["type"], dict):
        return st.sampled_from([item["value"] for item in attribute["type"]["members"]]).map(text)
    match attribute["type"]:
        case "int":
            lowest, highest = limits.get("minimum", -(2**63)), limits.get("maximum", 2**63 - 1)
            some = st.sampled_from([lowest, highest]) | st.integers(lowest, highest)
            return some.map(lambda value: AnyValue(int_value=value))
        case "double":
            lowest, highest = limits.get("minimum"), limits.get("maximum")
            some = st.floats(lowest, highest, allow_nan=False, allow_infinity=False)
            whole = st.integers(math.ceil(lowest or 0), math.floor(highest or 100))
            return some.map(lambda value: AnyValue(double_value=value)) | whole.map(
                lambda value: AnyValue(int_value=value)
            )
        case "boolean":
            return st.booleans().map(lambda value: AnyValue(bool_value=value))
    if "pattern" in limits:
        longest = limits.get("max_length", 256)
        some = st.sampled_from(attribute.get("examples", ["it's", "7.5"]))
        matching = st.from_regex(limits["pattern"], fullmatch=True)
        return (some | matching.filter(lambda value: len(value) <= longest)).map(text)
    longest = limits.get("max_length", 256)
    return TEXTS.filter(lambda value: len(value) <= longest).map(text)


Attributes = list[KeyValue]
Mutation = Callable[[Attributes], Attributes]


def _with(position: int, key: str, value: AnyValue | None, attributes: Attributes) -> Attributes:
    """The attribute put in somewhere: in front of one of the same key, or behind it."""
    position %= len(attributes) + 1
    return [*attributes[:position], KeyValue(key, value), *attributes[position:]]


def _without(position: int, attributes: Attributes) -> Attributes:
    if not attributes:
        return []
    position %= len(attributes)
    return attributes[:position] + attributes[position + 1 :]


def _revalued(position: int, value: AnyValue | None, attributes: Attributes) -> Attributes:
    if not attributes:
        return []
    position %= len(attributes)
    key = attributes[position].key
    return [*attributes[:position], KeyValue(key, value), *attributes[position + 1 :]]


def _set(key: str, value: AnyValue, attributes: Attributes) -> Attributes:
    return [*(item for item in attributes if item.key != key), KeyValue(key, value)]


def mutations(policy: Policy) -> st.SearchStrategy[Mutation]:
    """What goes wrong with a good event's attributes."""
    keys = st.sampled_from([*policy.attributes, "x.y", "otel.event.name", "event.name", ""])
    positions = st.integers(0, 30)
    id_keys = st.sampled_from(list(_GOOD_IDS))
    names = st.sampled_from(list(policy.events)).map(text)

    def partial(function: Any, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Mutation]:
        return st.tuples(*arguments).map(lambda drawn: functools.partial(function, *drawn))

    gone = st.sampled_from([(key, value) for key, ids in _GONE_IDS.items() for value in ids])
    return st.one_of(
        partial(_revalued, positions, VALUES | NOTHING),
        partial(_without, positions),
        partial(_with, positions, keys, VALUES | NOTHING),
        partial(_with, positions, TEXTS, VALUES),
        partial(_set, id_keys, RAW_IDS.map(text)),
        gone.map(lambda pair: functools.partial(_set, pair[0], text(pair[1]))),
        partial(_set, st.just("consent.analytics"), st.just(text("denied")) | TEXTS.map(text)),
        partial(_with, positions, st.sampled_from(["otel.event.name", "event.name"]), names),
        st.just(lambda attributes: list(reversed(attributes))),
        st.just(lambda attributes: [*attributes, *attributes]),
    )


@st.composite
def log_records(draw: st.DrawFn, policy: Policy) -> LogRecord:
    """A log record: a good event of the catalogue, changed in up to three places."""
    name = draw(st.sampled_from(list(policy.events)))
    attributes = [KeyValue("consent.analytics", text("granted"))]
    for key, level in policy.events[name].items():
        is_wanted = level == "required" or draw(st.booleans())
        if is_wanted and key not in ("consent.analytics", "user.email"):
            attributes.append(KeyValue(key, draw(valid_values(policy, key))))
    for mutation in draw(st.lists(mutations(policy), max_size=3)):
        attributes = mutation(attributes)
    how = draw(st.integers(0, 9))
    name = draw(TEXTS) if how == 9 else "" if how == 8 else name
    times = GOOD_TIMES if draw(st.integers(0, 3)) else ODD_TIMES | GOOD_TIMES
    return LogRecord(
        time_unix_nano=draw(times),
        observed_time_unix_nano=draw(st.just(0) | times),
        severity_number=draw(st.sampled_from([0, 9])),
        body=draw(st.none() | VALUES),
        attributes=attributes,
        event_name=name,
    )


#: A service's name is text here: what becomes of others is a known disagreement.
SERVICES = st.one_of(
    st.just([KeyValue("service.name", text("web"))]),
    st.just([]),
    TEXTS.map(lambda name: [KeyValue("service.name", text(name))]),
    st.lists(
        st.one_of(
            st.builds(KeyValue, st.just("service.name"), TEXTS.map(text)),
            st.builds(KeyValue, st.sampled_from(["host.name", ""]), VALUES | NOTHING),
        ),
        max_size=3,
    ),
)
STYLES = st.builds(Style, *[st.booleans()] * 5)


@st.composite
def batches(draw: st.DrawFn, policy: Policy) -> Batch:
    """An export request of up to three resources with up to two scopes each."""
    scopes = st.builds(
        ScopeLogs,
        scope=st.sampled_from([None, InstrumentationScope(name="web")]),
        log_records=st.lists(log_records(policy), max_size=5),
    )
    resources = st.builds(
        ResourceLogs,
        resource=st.none() | st.builds(Resource, attributes=SERVICES),
        scope_logs=st.lists(scopes, max_size=2),
    )
    return Batch(LogsData(draw(st.lists(resources, max_size=3))), draw(STYLES))


# -- making a failing example small ------------------------------------------------------------

Slices = list[list[Batch]]


def smallest(slices: Slices, fails: Callable[[Slices], bool], attempts: int = 300) -> Slices:
    """The slices with everything left out that the failure does not need.

    Hypothesis shrinks choice by choice, which takes minutes where each look costs a statement;
    this leaves out whole slices, batches, resources, scopes, records and attributes.
    """
    made_smaller = True
    while made_smaller and attempts > 0:
        made_smaller = False
        for candidate in _with_less(slices):
            attempts -= 1
            if fails(candidate):
                slices, made_smaller = candidate, True
                break
            if attempts <= 0:
                break
    return slices


def _with_less(slices: Slices) -> Iterator[Slices]:
    yield from _shorter(slices)
    for number, batch_list in enumerate(slices):
        for fewer_batches in _shorter(batch_list):
            yield [*slices[:number], fewer_batches, *slices[number + 1 :]]
        for place, batch in enumerate(batch_list):
            for message in _lesser_message(batch.message):
                changed = [*batch_list[:place], Batch(message), *batch_list[place + 1 :]]
                yield [*slices[:number], changed, *slices[number + 1 :]]


#: Lists of a message that may be made shorter, from the outside to the inside.
_LISTS = ("resource_logs", "scope_logs", "log_records", "attributes")


def _lesser_message(message: Any) -> Iterator[Any]:
    """The same message with one part less."""
    for name in _LISTS:
        items = getattr(message, name, None)
        if items is None:
            continue
        for fewer in _shorter(items):
            yield replace(message, **{name: fewer})
        for number, item in enumerate(items):
            for lesser in _lesser_message(item):
                yield replace(message, **{name: [*items[:number], lesser, *items[number + 1 :]]})


def _shorter(items: list[Any]) -> Iterator[list[Any]]:
    """Halves first, then all but one."""
    half = len(items) // 2
    if half > 1:
        yield items[:half]
        yield items[half:]
    for number in range(len(items)):
        yield items[:number] + items[number + 1 :]
