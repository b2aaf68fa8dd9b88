"""The same records as OTLP/JSON lines and as OTLP protobuf requests, made of shared byte pieces.

A record is a head of fixed length (time, event.id), its session's edge ids, what its kind of event
says, and an end. Each piece exists in both encodings and is made from the same values, so a record
costs a few slices instead of an encoder's run: 5 million take seconds.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.ingest.population import BACK_END, FRONT_END, KINDS, Kind, Population, Value
from telemetry_pipeline.sources.base import varint

SCOPE = "bench"
SERVICES = (FRONT_END, BACK_END)
_INFO = 9  # severity_number
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_CHUNK = 200_000  # records whose heads are made at once

# Field numbers of opentelemetry/proto/logs/v1 and common/v1, each with its wire type.
_TIME, _SEVERITY, _ATTRIBUTE, _OBSERVED, _EVENT_NAME = b"\x09", b"\x10", b"\x32", b"\x59", b"\x62"
_OBSERVED_BYTES = 9
_KEY, _VALUE = b"\x0a", b"\x12"
_STRING, _BOOL, _INT, _DOUBLE = b"\x0a", b"\x10", b"\x18", b"\x21"
_LOG_RECORD, _SCOPE_LOGS, _RESOURCE_LOGS = b"\x12", b"\x12", b"\x0a"
_RESOURCE, _RESOURCE_ATTRIBUTE, _SCOPE, _SCOPE_NAME = b"\x0a", b"\x0a", b"\x0a", b"\x0a"


@dataclass(frozen=True)
class Encoding:
    """The pieces of records. `head` has zeros where what differs goes: the id at `id_at`, …

    Protobuf writes fields in the order of their numbers, so its observed time stands behind the
    attributes; JSON's stands in the head.
    """

    head: bytes
    time_at: int
    id_at: int
    sessions: list[bytes]
    kinds: list[bytes]
    ends: list[bytes]  # one for each kind


def batches(
    population: Population, encoding: str, seed: int, size: int
) -> Iterator[tuple[bytes, int]]:
    """Export requests of `size` records (the last may be smaller) and their number of records.

    `encoding`: json gives a line without its newline, proto an ExportLogsServiceRequest. Records
    of one service stand together, as in what a Collector's batcher puts out.
    """
    pieces = (
        _json_pieces(population, seed) if encoding == "json" else _proto_pieces(population, seed)
    )
    wrap = _wrap_json if encoding == "json" else _wrap_proto
    records = len(population.time_ns)
    is_back_end = np.array([kind.service == BACK_END for kind in KINDS])
    lengths = np.array([len(k) + len(e) for k, e in zip(pieces.kinds, pieces.ends, strict=True)])
    for first in range(0, records, size * (_CHUNK // size)):
        rows = np.arange(first, min(records, first + size * (_CHUNK // size)))
        service = is_back_end[population.kind[rows]]
        rows = rows[np.lexsort((service, (rows - first) // size))]
        service = is_back_end[population.kind[rows]].astype(np.uint8).tolist()
        if encoding == "json":
            heads, observed = _json_heads(population, rows, pieces), b""
        else:
            heads = _proto_heads(population, rows, pieces, lengths)
            observed = _proto_observed(population, rows)
        texts = _records(pieces, population, rows, heads, observed)
        for begin in range(0, len(texts), size):
            end = min(begin + size, len(texts))
            front = end - begin - sum(service[begin:end])
            groups = (texts[begin : begin + front], texts[begin + front : end])
            yield wrap(groups), end - begin


def _records(
    pieces: Encoding,
    population: Population,
    rows: npt.NDArray[np.int64],
    heads: bytes,
    observed: bytes,
) -> list[bytes]:
    wide, narrow = len(pieces.head), len(observed) // len(rows)
    sessions, kinds, ends = pieces.sessions, pieces.kinds, pieces.ends
    places = zip(population.session[rows].tolist(), population.kind[rows].tolist(), strict=True)
    return [
        heads[number * wide : (number + 1) * wide]
        + sessions[session]
        + kinds[kind]
        + observed[number * narrow : (number + 1) * narrow]
        + ends[kind]
        for number, (session, kind) in enumerate(places)
    ]


def edge_ids(seed: int, kind: str, count: int) -> list[str]:
    """Ids as they arrive from the edge; `count` different ones for each kind."""
    return [
        "e1_" + hashlib.sha256(f"{seed}:{kind}:{number}".encode()).hexdigest()
        for number in range(count)
    ]


def _session_attributes(population: Population, seed: int) -> Iterator[list[tuple[str, Value]]]:
    sessions = len(population.user)
    users = edge_ids(seed, "user", len(population.organisation))
    organisations = edge_ids(seed, "organisation", int(population.organisation.max()) + 1)
    ids = edge_ids(seed, "session", sessions)
    for user, session in zip(population.user.tolist(), ids, strict=True):
        yield [
            ("organisation.id", organisations[population.organisation[user]]),
            ("enduser.pseudo.id", users[user]),
            ("session.id", session),
        ]


# -- OTLP/JSON -----------------------------------------------------------------------------


def _json_pieces(population: Population, seed: int) -> Encoding:
    head = (
        b'{"timeUnixNano":"' + b"0" * 19 + b'","observedTimeUnixNano":"' + b"0" * 19 + b'",'
        b'"severityNumber":9,"body":{},"attributes":[{"key":"event.id","value":{"stringValue":"'
        + b"0" * 36
        + b'"}},'
    )
    return Encoding(
        head=head,
        time_at=head.index(b"0" * 19),
        id_at=head.index(b"0" * 36),
        sessions=[
            b"".join(_json_attribute(key, value) + b"," for key, value in attributes)
            for attributes in _session_attributes(population, seed)
        ],
        kinds=[
            b",".join(_json_attribute(key, value) for key, value in _said_by(kind))
            for kind in KINDS
        ],
        ends=[b'],"eventName":"' + kind.name.encode() + b'"}' for kind in KINDS],
    )


def _said_by(kind: Kind) -> tuple[tuple[str, Value], ...]:
    return (*kind.attributes, ("consent.analytics", "granted"))


def _json_attribute(key: str, value: Value) -> bytes:
    match value:
        case bool():
            wrapped: dict[str, Value] = {"boolValue": value}
        case int():
            wrapped = {"intValue": str(value)}  # 64-bit integers are strings in OTLP/JSON
        case float():
            wrapped = {"doubleValue": value}
        case str():
            wrapped = {"stringValue": value}
    return json.dumps({"key": key, "value": wrapped}, separators=(",", ":")).encode()


def _json_heads(population: Population, rows: npt.NDArray[np.int64], pieces: Encoding) -> bytes:
    observed_at = pieces.head.index(b"0" * 19, pieces.time_at + 19)
    heads = np.tile(np.frombuffer(pieces.head, dtype=np.uint8), (len(rows), 1))
    heads[:, pieces.time_at : pieces.time_at + 19] = _digits(population.time_ns[rows])
    heads[:, observed_at : observed_at + 19] = _digits(population.observed_ns[rows])
    heads[:, pieces.id_at : pieces.id_at + 36] = _uuid_text(population.event_id[rows])
    return heads.tobytes()


def _wrap_json(groups: tuple[list[bytes], list[bytes]]) -> bytes:
    resources = [
        b'{"resource":{"attributes":['
        + _json_attribute("service.name", service)
        + b']},"scopeLogs":[{"scope":{"name":"'
        + SCOPE.encode()
        + b'"},"logRecords":['
        + b",".join(texts)
        + b"]}]}"
        for service, texts in zip(SERVICES, groups, strict=True)
        if texts
    ]
    return b'{"resourceLogs":[' + b",".join(resources) + b"]}"


# -- OTLP protobuf -------------------------------------------------------------------------


def _proto_pieces(population: Population, seed: int) -> Encoding:
    event_id = _proto_attribute("event.id", "0" * 36)
    # The record's own tag and length go first; every record is between 128 and 16,383 bytes, so
    # its length takes two.
    head = _LOG_RECORD + b"\0\0" + _TIME + b"\0" * 8 + _SEVERITY + bytes([_INFO]) + event_id
    return Encoding(
        head=head,
        time_at=4,
        id_at=len(head) - 36,
        sessions=[
            b"".join(_proto_attribute(key, value) for key, value in attributes)
            for attributes in _session_attributes(population, seed)
        ],
        kinds=[
            b"".join(_proto_attribute(key, value) for key, value in _said_by(kind))
            for kind in KINDS
        ],
        ends=[_field(_EVENT_NAME, kind.name.encode()) for kind in KINDS],
    )


def _proto_attribute(key: str, value: Value) -> bytes:
    match value:
        case bool():
            wrapped = _BOOL + bytes([value])
        case int():
            wrapped = _INT + varint(value)
        case float():
            wrapped = _DOUBLE + struct.pack("<d", value)
        case str():
            wrapped = _field(_STRING, value.encode())
    return _field(_ATTRIBUTE, _field(_KEY, key.encode()) + _field(_VALUE, wrapped))


def _proto_heads(
    population: Population,
    rows: npt.NDArray[np.int64],
    pieces: Encoding,
    kind_lengths: npt.NDArray[np.int64],
) -> bytes:
    heads = np.tile(np.frombuffer(pieces.head, dtype=np.uint8), (len(rows), 1))
    heads[:, pieces.time_at : pieces.time_at + 8] = _little_endian(population.time_ns[rows])
    heads[:, pieces.id_at : pieces.id_at + 36] = _uuid_text(population.event_id[rows])
    # Edge ids have one length, so have the sessions' pieces.
    fixed = len(pieces.head) - 3 + len(pieces.sessions[0]) + _OBSERVED_BYTES
    length = fixed + kind_lengths[population.kind[rows]]
    assert int(length.min()) >= 128 and int(length.max()) < 1 << 14
    heads[:, 1] = length & 0x7F | 0x80
    heads[:, 2] = length >> 7
    return heads.tobytes()


def _proto_observed(population: Population, rows: npt.NDArray[np.int64]) -> bytes:
    field = np.empty((len(rows), _OBSERVED_BYTES), dtype=np.uint8)
    field[:, 0] = _OBSERVED[0]
    field[:, 1:] = _little_endian(population.observed_ns[rows])
    return field.tobytes()


def _little_endian(times: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return times.astype("<i8").view(np.uint8).reshape(-1, 8)


def _wrap_proto(groups: tuple[list[bytes], list[bytes]]) -> bytes:
    request = b""
    for service, texts in zip(SERVICES, groups, strict=True):
        if not texts:
            continue
        name = _field(_KEY, b"service.name") + _field(_VALUE, _field(_STRING, service.encode()))
        resource = _field(_RESOURCE, _field(_RESOURCE_ATTRIBUTE, name))
        scope = _field(_SCOPE, _field(_SCOPE_NAME, SCOPE.encode()))
        scope_logs = _field(_SCOPE_LOGS, scope + b"".join(texts))
        request += _field(_RESOURCE_LOGS, resource + scope_logs)
    return request


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content


# -- digits --------------------------------------------------------------------------------


def _digits(times: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """(records, 19) ASCII digits of times in ns; they have 19 digits from 2001 to 2286."""
    text = np.empty((len(times), 19), dtype=np.uint8)
    left = times.copy()
    for place in range(18, -1, -1):
        left, digit = np.divmod(left, 10)
        text[:, place] = digit + ord("0")
    return text


def _uuid_text(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(records, 36) ASCII: 8-4-4-4-12 lower-case hex digits."""
    digits = np.empty((len(ids), 32), dtype=np.uint8)
    digits[:, 0::2] = _HEX[ids >> 4]
    digits[:, 1::2] = _HEX[ids & 0x0F]
    text = np.full((len(ids), 36), ord("-"), dtype=np.uint8)
    for to, start, end in ((0, 0, 8), (9, 8, 12), (14, 12, 16), (19, 16, 20), (24, 20, 32)):
        text[:, to : to + end - start] = digits[:, start:end]
    return text
