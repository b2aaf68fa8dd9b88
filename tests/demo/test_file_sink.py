"""The sink's files look like those of the Collector's file exporter, quirks included."""

import re
from datetime import UTC, datetime
from pathlib import Path

import sink_oracle
from emitted import Emission

from telemetry_pipeline.demo.sink import FileSink

AT = datetime(2025, 1, 2, 15, 4, 5, tzinfo=UTC)
KIBIBYTE = 1 / 1024


def write_lines(folder: Path, count: int, start: int = 0) -> list[bytes]:
    lines = [f"line {number:03d} {'x' * 190}".encode() for number in range(start, start + count)]
    with FileSink(folder, max_megabytes=KIBIBYTE) as sink:
        for line in lines:
            sink.write(line, AT)
    return lines


def test_a_file_is_renamed_with_its_time_before_it_would_grow_too_large(tmp_path: Path) -> None:
    write_lines(tmp_path, 6)

    assert {path.name for path in tmp_path.iterdir()} == {
        "events.jsonl",
        "events-2025-01-02T15-04-05.000-size.jsonl",
    }


def test_no_file_exceeds_the_limit_and_no_line_is_lost_or_torn(tmp_path: Path) -> None:
    lines = write_lines(tmp_path, 100)

    assert sink_oracle.lines_of(tmp_path) == lines
    assert all(path.stat().st_size <= 1024 for path in tmp_path.iterdir())


def test_files_rotated_in_the_same_millisecond_keep_their_order(tmp_path: Path) -> None:
    write_lines(tmp_path, 100)
    names = sorted(path.name for path in tmp_path.iterdir() if path.name != "events.jsonl")

    assert names[:3] == [f"events-2025-01-02T15-04-05.00{n}-size.jsonl" for n in range(3)]


def test_a_few_files_end_without_a_newline_and_the_next_opens_with_it(emission: Emission) -> None:
    rotated = sorted(path for path in emission.sink.iterdir() if path.name != "events.jsonl")
    files = [path.read_bytes() for path in (*rotated, emission.sink / "events.jsonl")]
    torn = [number for number, data in enumerate(files) if not data.endswith(b"\n")]

    assert len(files) > 10
    assert 2 <= len(torn) < len(files) / 2
    assert all(files[number + 1].startswith(b"\n") for number in torn)
    assert all(re.fullmatch(r"events-[\dT.-]{23}-size\.jsonl", path.name) for path in rotated)


def test_a_second_writer_appends_to_what_is_there(tmp_path: Path) -> None:
    first = write_lines(tmp_path, 2)
    second = write_lines(tmp_path, 40, start=2)

    assert sink_oracle.lines_of(tmp_path) == first + second


def test_a_line_that_a_killed_writer_left_half_is_not_glued_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"resourceLogs":[{"res')

    lines = write_lines(tmp_path, 1)

    assert sink_oracle.lines_of(tmp_path) == [b'{"resourceLogs":[{"res', *lines]
