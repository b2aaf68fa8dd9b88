"""Entries of a Redis stream: their ids as offsets, and each entry as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from pydantic_core import from_json

#: (milliseconds, sequence number), as Redis orders them.
EntryId = tuple[int, int]

SEQUENCE_BITS = 22
#: The last offset of a millisecond stands for every id of it that does not fit.
LAST_SEQUENCE = (1 << SEQUENCE_BITS) - 1
#: The last millisecond (in the year 2109) stands for every id of it and after it.
LAST_MILLISECOND = (1 << 42) - 1
#: The largest number that Redis takes in either part of an id.
LARGEST = (1 << 64) - 1


def fits(entry: EntryId) -> bool:
    """Whether the id has an offset of its own."""
    return entry[0] < LAST_MILLISECOND and entry[1] < LAST_SEQUENCE


def offset_of(entry: EntryId) -> int:
    """The id as a number: milliseconds << 22 | sequence. An id that does not fit shares the last
    offset of its millisecond; the order of ids is kept, and offset + 1 fits 64 bits."""
    milliseconds, sequence = entry
    if milliseconds >= LAST_MILLISECOND:
        return LAST_MILLISECOND << SEQUENCE_BITS
    return milliseconds << SEQUENCE_BITS | min(sequence, LAST_SEQUENCE)


def id_of(offset: int) -> EntryId:
    """The id that has this offset; for a shared offset, the smallest of them."""
    return offset >> SEQUENCE_BITS, offset & LAST_SEQUENCE


def last_id_of(offset: int) -> EntryId:
    """The largest id that has this offset."""
    milliseconds, sequence = id_of(offset)
    if milliseconds == LAST_MILLISECOND:
        return LARGEST, LARGEST
    return milliseconds, LARGEST if sequence == LAST_SEQUENCE else sequence


def before(offset: int) -> EntryId:
    """The largest id below those of `offset`, which is above 0."""
    return last_id_of(offset - 1)


def after(entry: EntryId) -> EntryId:
    """The next larger id."""
    milliseconds, sequence = entry
    return (milliseconds, sequence + 1) if sequence < LARGEST else (milliseconds + 1, 0)


def parse_id(text: bytes) -> EntryId:
    milliseconds, _, sequence = text.partition(b"-")
    return int(milliseconds), int(sequence)


def format_id(entry: EntryId) -> bytes:
    return b"%d-%d" % entry


def organisation_of(stream: bytes, prefix: str) -> str | None:
    """The middle part of `<prefix>:<organisation or anonymous>:events`; empty for anonymous.

    None for a name that is not UTF-8: written in any other way it could be another's name.
    """
    middle = stream.removeprefix(f"{prefix}:".encode()).removesuffix(b":events")
    try:
        organisation = middle.decode()
    except UnicodeDecodeError:
        return None
    return "" if organisation == "anonymous" else organisation


def line_of(organisation: str | None, fields: Sequence[bytes]) -> bytes:
    """One entry (its fields and values in turn) as one line that ends with a newline.

    `{"organisation": …, "batch": <the field batch as it stands>}` where that is one JSON object.
    Whatever else stands there goes into a JSON string under "undecodable" instead, so that no text
    can add a key, a line, or end another one.
    """
    batches = [value for name, value in _pairs(fields) if name == b"batch"]
    if organisation is not None and len(batches) == 1 and _is_object(batches[0]):
        # A valid JSON text holds line ends only between its tokens, where a space means the same.
        batch = batches[0].replace(b"\n", b" ").replace(b"\r", b" ")
        return b'{"organisation": %b, "batch": %b}\n' % (_quoted(organisation), batch)
    text = _text(batches[0]) if len(batches) == 1 else _quoted_pairs(fields)
    return b'{"organisation": %b, "undecodable": %b}\n' % (
        _quoted(organisation or ""),
        _quoted(text),
    )


def _pairs(fields: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(fields[::2], fields[1::2], strict=True)


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(from_json(text, allow_inf_nan=False), dict)
    except ValueError:
        return False


def _quoted_pairs(fields: Sequence[bytes]) -> str:
    return json.dumps([[_text(name), _text(value)] for name, value in _pairs(fields)])


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _quoted(text: str) -> bytes:
    return json.dumps(text).encode()
