"""Native answers as newer clients of ClickHouse want them: with block info and serialization flags.

A server writes Native for the protocol revision that a client names (`client_protocol_version`),
chDB always for revision 0. From CUSTOM_SERIALIZATION on (clickhouse-go, and so the Collector's
clickhouseexporter, asks for a later one) each block begins with its info, and a flag follows each
column's type. Where it goes is known only to who can tell how long a column is, so this reads
columns of fixed width and strings: what such clients ask for to get to know a server.
"""

from __future__ import annotations

import re
from typing import Final

from telemetry_pipeline.warehouse.embedded.errors import not_supported

#: The first revision with a flag behind each column's type. Between 0 and it lies what
#: clickhouse-connect asks for; it sees by a first query that it is not served, and does without.
CUSTOM_SERIALIZATION: Final = 54454

# Field 1, no overflow rows; field 2, no bucket (-1); the end.
_BLOCK_INFO: Final = b"\x01\x00" + b"\x02\xff\xff\xff\xff" + b"\x00"
_DEFAULT_SERIALIZATION: Final = b"\x00"

_WIDTHS: Final = {
    "Bool": 1,
    "Date": 2,
    "Date32": 4,
    "DateTime": 4,
    "DateTime64": 8,
    "Enum8": 1,
    "Enum16": 2,
    "IPv4": 4,
    "IPv6": 16,
    "UUID": 16,
}
_NUMBER: Final = re.compile(r"(?:UInt|Int|Float|BFloat)(\d+)")
_NULLABLE: Final = re.compile(r"Nullable\((.*)\)")
_FIXED_STRING: Final = re.compile(r"FixedString\((\d+)\)")


def with_revision(native: bytes) -> bytes:
    """The blocks of `native`, written for revision 0, as CUSTOM_SERIALIZATION has them.

    Raises `QueryError` for a column of another type than numbers, times, strings and their like.
    """
    reader = _Reader(native)
    pieces: list[bytes] = []
    while not reader.at_end:
        start = reader.position
        columns, rows = reader.varint(), reader.varint()
        pieces += (_BLOCK_INFO, native[start : reader.position])
        for _ in range(columns):
            start = reader.position
            reader.skip_string()
            kind = reader.string()
            pieces += (native[start : reader.position], _DEFAULT_SERIALIZATION)
            start = reader.position
            reader.skip_column(kind, rows)
            pieces.append(native[start : reader.position])
    return b"".join(pieces)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def at_end(self) -> bool:
        return self.position >= len(self._data)

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._data[self.position]
            self.position += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    def string(self) -> str:
        length = self.varint()
        self.position += length
        return self._data[self.position - length : self.position].decode()

    def skip_string(self) -> None:
        length = self.varint()
        self.position += length

    def skip_column(self, kind: str, rows: int) -> None:
        if nullable := _NULLABLE.fullmatch(kind):
            self.position += rows
            kind = nullable[1]
        if kind == "String":
            for _ in range(rows):
                self.skip_string()
            return
        self.position += rows * _width(kind)


def _width(kind: str) -> int:
    if number := _NUMBER.fullmatch(kind):
        return int(number[1]) // 8
    if fixed := _FIXED_STRING.fullmatch(kind):
        return int(fixed[1])
    width = _WIDTHS.get(kind.partition("(")[0])
    if width is None:
        raise not_supported(
            f"client_protocol_version with a column of type {kind}: convert it to a number, a time "
            "or a String, or leave the parameter out"
        )
    return width
