"""One slice at a time in the memory of a warehouse session: parsed, judged, ready to land.

The engine does the work for each record. Python sees a slice's shapes (a few dozen, and only those
that the session has not met), and of a slice that holds lines without a record, those lines.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.ingest.reasons import REJECTED
from telemetry_pipeline.ingest.shapes import COLUMNS
from telemetry_pipeline.ingest.statements import Contract, Numbering, Salt, statement
from telemetry_pipeline.sources.base import Encoding, varint
from telemetry_pipeline.warehouse.client import insert_data

#: Where a Collector that died inside a line goes on in the same line after its restart. It cannot
#: stand inside a string of JSON, where its quotes would be escaped.
_REQUEST_START = b'{"resourceLogs":['
#: Parts of one line have numbers of their own from here on, in steps of this size.
_RECORDS_A_PART = 1 << 20
_MOST_PARTS = 15
_TABLES = ("parsed", "stage", "repeats", "problems", "letters")
#: Of messages that Python's parser refuses, so many are shown to the engine one by one.
_MOST_DOUBTFUL = 200
#: A session that met this many shapes begins anew: somebody sends nothing but new ones.
_MOST_SHAPES = 20_000


class StagingError(TelemetryError):
    """A slice's records are not in the session's tables as they should be."""


@dataclass
class Staging:
    """The temporary tables of one warehouse session."""

    client: Client
    contract: Contract
    keys: Mapping[str, str]
    settings: Mapping[str, Any]
    spool: Path | None = None
    _salt: Salt = field(init=False)
    _shapes: int = field(default=0, init=False)
    #: Whoever had the session before may have left rows.
    _filled: tuple[str, ...] = field(default=_TABLES, init=False)
    _is_ready: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        # Hex digits alone could be guessed to be a part's beginning; a control character in front
        # keeps the texts apart from what people send.
        self._salt = Salt(
            section=f"\x01{secrets.token_hex(8)}",
            part=f"\x02{secrets.token_hex(8)}",
            key=(secrets.randbits(63), secrets.randbits(63)),
        )

    def stage(
        self,
        data: bytes,
        encoding: Encoding,
        *,
        hashes_on_read: bool,
        batch_id: int,
        slice_time_ms: int,
    ) -> int:
        """Parse and judge a slice; how many log records it holds. Raises DatabaseError when the
        warehouse cannot, StagingError when the session's tables are not as they should be."""
        self._empty_tables()
        lines = Lines.of(data, encoding)
        self._parse(lines)
        parameters = {
            **self.keys,
            "batch_id": batch_id,
            "slice_time_ms": slice_time_ms,
            "is_binary": int(encoding == "otlp_proto"),
        }
        self._run(self.contract.judge_sql(hashes_on_read=hashes_on_read), parameters)
        self._run(self.contract.repeats_sql, parameters)
        received, rejected = self._counts()
        if rejected:
            self._run(self.contract.letters_sql(hashes_on_read=hashes_on_read), parameters)
        return received

    def _empty_tables(self) -> None:
        if not self._is_ready:
            for create in self.contract.create_tables:
                self.client.command(create)
            self._is_ready = True
        if self._shapes > _MOST_SHAPES:
            self.client.command("TRUNCATE TEMPORARY TABLE shapes")
            self._shapes = 0
        for table in self._filled:
            self.client.command(f"TRUNCATE TEMPORARY TABLE {table}")
        # Until it is known better: a slice that fails may leave rows in any of them.
        self._filled = _TABLES

    def _parse(self, lines: Lines) -> None:
        if lines.encoding == "otlp_proto":
            self._parse_messages(lines)
        else:
            self._insert(self.contract.parse_sql(lines.encoding, self._salt), lines.data)
        lines_with_records, shapes = self._found()
        if lines_with_records != lines.count:
            self._keep_problems(lines)
            _, shapes = self._found()
        self._judge_shapes(shapes)

    def _parse_messages(self, lines: Lines) -> None:
        """A message that is none would fail the whole slice: then they are looked at one by one."""
        try:
            self._insert(self.contract.parse_sql("otlp_proto", self._salt), lines.data)
        except DatabaseError as error:
            if not _is_parse_error(error):
                raise
            numbered = list(lines.numbered())
            good = {number for number, line in numbered if _is_request(line)}
            self._parse_again(lines, sorted(good))
            # The engine takes some that Python's parser does not, such as text that is no UTF-8:
            # a message's fate must not depend on its neighbours.
            doubtful = [number for number, _ in numbered if number not in good]
            for number in doubtful[:_MOST_DOUBTFUL]:
                self._parse_again(lines, [number])

    def _parse_again(self, lines: Lines, numbers: Sequence[int]) -> None:
        """Parse these messages; those that the engine refuses nevertheless are left out."""
        if not numbers:
            return
        try:
            chosen = [lines.line(number) for number in numbers]
            self._insert(
                self.contract.parse_sql("otlp_proto", self._salt, _numbering(numbers)),
                b"".join(varint(len(message)) + message for message in chosen),
            )
        except DatabaseError as error:
            if not _is_parse_error(error):
                raise
            if len(numbers) > 1:
                middle = len(numbers) // 2
                self._parse_again(lines, numbers[:middle])
                self._parse_again(lines, numbers[middle:])

    def _keep_problems(self, lines: Lines) -> None:
        """Lines that left no record: split where two were joined, kept as they are otherwise."""
        rows = self.client.query("SELECT DISTINCT bitShiftRight(position, 24) FROM parsed")
        with_records = {row[0] for row in rows.result_rows}
        left = [
            (number, line)
            for number, line in lines.numbered()
            if number not in with_records and not lines.is_blank(line)
        ]
        problems: list[tuple[int, bytes]] = []
        for number, line in left:
            parts = _parts(line) if lines.encoding == "otlp_json" else [line]
            places = [(number << 24) + part * _RECORDS_A_PART for part in range(len(parts))]
            for place, part in zip(places, parts, strict=True):
                if len(parts) == 1 or not self._parse_part(place, part):
                    problems.append((place + 1, part))
        self._insert_problems(problems, lines.encoding)

    def _parse_part(self, place: int, part: bytes) -> bool:
        """Whether a part of a line has records; they are kept then."""
        at = Numbering(f"toUInt64({place >> 24})", str(place & (_RECORDS_A_PART * 16 - 1)))
        before = self._count("SELECT count() FROM parsed")
        self._insert(self.contract.parse_sql("otlp_json", self._salt, at), part + b"\n")
        return self._count("SELECT count() FROM parsed") > before

    def _insert_problems(self, problems: Sequence[tuple[int, bytes]], encoding: Encoding) -> None:
        if not problems:
            return
        is_binary = encoding == "otlp_proto"
        reasons = ["" for _ in problems]
        if is_binary:
            reasons = ["not_logs" if _is_request(line) else "undecodable" for _, line in problems]
        texts = [base64.b64encode(line) if is_binary else line for _, line in problems]
        sql = (
            statement("problems.sql")
            .replace("{{positions}}", str([place for place, _ in problems]))
            .replace("{{reasons}}", str(reasons))
        )
        self._insert(sql, b"".join(text.replace(b"\n", b" ") + b"\n" for text in texts))

    def _found(self) -> tuple[int, Sequence[tuple[int, str]]]:
        """How many lines have records, and the shapes that this session has not judged yet."""
        ((lines, shapes),) = self.client.query(
            "SELECT uniqExact(bitShiftRight(position, 24)), (SELECT groupArray((shape, text)) FROM "
            "(SELECT shape, any(shape_text) AS text FROM parsed "
            "WHERE shape NOT IN (SELECT shape FROM shapes) GROUP BY shape)) FROM parsed"
        ).result_rows
        return lines, shapes

    def _judge_shapes(self, found: Sequence[tuple[int, str]]) -> None:
        if not found:
            return
        rows = [self._shape_row(shape, text) for shape, text in found]
        self.client.insert(
            "shapes",
            rows,
            column_names=list(COLUMNS),
            column_type_names=list(COLUMNS.values()),
        )
        self._shapes += len(found)

    def _shape_row(self, shape: int, text: str) -> list[Any]:
        part = self._salt.part
        name, count, keys, kinds = text.split(self._salt.section)
        if count == "0":
            return self.contract.shapes.judge(shape, name, [], []).row()
        return self.contract.shapes.judge(shape, name, keys.split(part), kinds.split(part)).row()

    def _counts(self) -> tuple[int, int]:
        """Records received, and those that become dead letters."""
        rejected = ", ".join(f"'{reason}'" for reason in REJECTED)
        ((received, places, staged, repeats, conflicts, problems),) = self.client.query(
            f"SELECT count(), uniqExact(position), countIf(reason IN ({rejected})), "
            "(SELECT count() FROM repeats), (SELECT countIf(is_conflict) FROM repeats), "
            "(SELECT count() FROM problems) FROM stage"
        ).result_rows
        if received != places:
            # A statement of this session ran twice: a client may repeat a request whose answer
            # was lost. Nothing has landed yet; the slice is staged anew by whoever takes it over.
            raise StagingError("records were staged twice")
        if not (staged or repeats or problems):
            self._filled = ("parsed", "stage")
        if problems:
            self.client.command(
                "INSERT INTO stage (position, reason) SELECT position, reason FROM problems"
            )
        return received + problems, staged + conflicts + problems

    def _count(self, question: str) -> int:
        return int(self.client.query(question).result_rows[0][0])

    def _run(self, sql: str, parameters: Mapping[str, Any]) -> None:
        self.client.command(sql, parameters=dict(parameters), settings=dict(self.settings))

    def _insert(self, sql: str, data: bytes) -> None:
        insert_data(self.client, sql, data, self.settings, self.spool)


@dataclass(frozen=True)
class Lines:
    """A slice's bytes as lines (or messages), numbered from 0."""

    data: bytes
    encoding: Encoding
    count: int
    _messages: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, data: bytes, encoding: Encoding) -> Lines:
        if encoding == "otlp_proto":
            places = tuple(_message_places(data))
            return cls(data, encoding, len(places), places)
        ends_open = bool(data) and not data.endswith(b"\n")
        return cls(data, encoding, data.count(b"\n") + ends_open)

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        if self.encoding == "otlp_proto":
            for number, (start, end) in enumerate(self._messages):
                yield number, self.data[start:end]
            return
        number, start = 0, 0
        while start < len(self.data):
            newline = self.data.find(b"\n", start)
            end = len(self.data) if newline < 0 else newline
            line = self.data[start:end]
            yield number, line
            number += 1
            start = end + 1

    def is_blank(self, line: bytes) -> bool:
        """Blank lines count as nothing; an empty message is a request without records."""
        return self.encoding != "otlp_proto" and not line.strip(b" \t\r")

    def line(self, number: int) -> bytes:
        start, end = self._messages[number]
        return self.data[start:end]


def _message_places(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        length, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield at, at + length
        at += length


def _numbering(numbers: Sequence[int]) -> Numbering:
    places = ", ".join(map(str, numbers))
    return Numbering(f"CAST([{places}], 'Array(UInt64)')[line_number + 1]")


def _parts(line: bytes) -> list[bytes]:
    """A line where requests begin: more than one part only if another begins inside."""
    starts, at = [0], line.find(_REQUEST_START, 1) if line.startswith(b"{") else -1
    while at >= 0 and len(starts) < _MOST_PARTS:
        starts.append(at)
        at = line.find(_REQUEST_START, at + 1)
    return [line[start:end] for start, end in zip(starts, [*starts[1:], len(line)], strict=True)]


def _is_request(message: bytes) -> bool:
    try:
        ExportLogsServiceRequest.FromString(message)
    except DecodeError:
        return False
    return True


def _is_parse_error(error: DatabaseError) -> bool:
    """Whether the engine could not read the data, as against every other failure."""
    return any(name in str(error) for name in _PARSE_ERRORS)


_PARSE_ERRORS = (
    "UNKNOWN_PROTOBUF_FORMAT",
    "PROTOBUF_BAD_CAST",
    "CANNOT_READ_ALL_DATA",
    "CANNOT_PARSE",
    "INCORRECT_DATA",
    "ATTEMPT_TO_READ_AFTER_EOF",
)
