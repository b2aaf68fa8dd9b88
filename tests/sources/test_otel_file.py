"""The Collector's files: every whole line is in exactly one slice, whatever happens to the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from file_sink import ROTATED, ROTATED_LATER, Sink, lines
from hypothesis import given
from hypothesis import strategies as st

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources.otel_file import OtelFileSource
from telemetry_pipeline.sources.sink_files import SinkFiles


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    return Sink(tmp_path)


def test_an_empty_folder_has_nothing_new(sink: Sink) -> None:
    assert sink.read() == b""
    assert sink.source.waiting({}) == 0


def test_a_folder_that_is_not_there_has_nothing_new(tmp_path: Path) -> None:
    source = OtelFileSource("app", tmp_path / "nowhere" / "events.jsonl")

    assert list(source.read_new({})) == []
    assert source.waiting({}) == 0


def test_what_was_read_is_not_read_again(sink: Sink) -> None:
    sink.write(lines(0, 10))
    assert sink.read() == lines(0, 10)
    sink.write(lines(10, 12))

    assert sink.source.waiting(sink.positions) == len(lines(10, 12))
    assert sink.read() == lines(10, 12)
    assert sink.read() == b""
    assert sink.source.waiting(sink.positions) == 0


def test_slices_end_at_line_ends(sink: Sink) -> None:
    sink.write(lines(0, 50))

    sink.read()

    assert len(sink.claimed) > 10
    assert all(cut.data.endswith(b"\n") for cut in sink.claimed)
    assert all(len(cut.data) <= sink.slice_bytes for cut in sink.claimed)


def test_a_half_written_line_waits_until_it_is_whole(sink: Sink) -> None:
    sink.write(lines(0, 3) + b'{"line"')

    assert sink.source.waiting(sink.positions) == len(lines(0, 3))
    assert sink.read() == lines(0, 3)

    sink.write(b": 3}\n")
    assert sink.read() == lines(3, 4)


def test_a_half_written_first_line_is_no_file_yet(sink: Sink) -> None:
    sink.write(b'{"line"')
    assert sink.read() == b""

    sink.write(b": 0}\n")
    assert sink.read() == lines(0, 1)


def test_a_half_written_first_line_longer_than_the_head_keeps_its_identity(sink: Sink) -> None:
    long = b'"' + b"x" * 9000 + b'"\n'
    sink.write(long[:5000])
    assert sink.read() == b""
    sink.write(long[5000:])
    assert sink.read() == long
    sink.write(lines(0, 2))

    assert sink.read() == lines(0, 2)
    assert len(sink.positions) == 1


def test_a_line_longer_than_a_slice_is_one_slice(sink: Sink) -> None:
    long = b'"' + b"x" * 500 + b'"\n'
    sink.write(lines(0, 1) + long + lines(1, 2))

    assert sink.read() == lines(0, 1) + long + lines(1, 2)
    assert any(long in cut.data for cut in sink.claimed)


def test_a_rotation_changes_nothing(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.read()
    sink.write(lines(10, 12))
    sink.rotate()
    sink.write(lines(12, 15))

    assert sink.read() == lines(10, 12) + lines(12, 15)
    assert sink.source.losses(sink.positions) == []


def test_a_rotation_while_reading_neither_skips_nor_repeats_a_byte(sink: Sink) -> None:
    sink.write(lines(0, 20))

    def rotation() -> None:
        sink.write(lines(20, 22))
        sink.rotate()
        sink.write(lines(22, 30))

    read = sink.read(meanwhile=rotation) + sink.read()

    assert sorted(read.splitlines()) == sorted(lines(0, 30).splitlines())


def test_a_rotation_between_listing_and_opening_mixes_no_two_files(sink: Sink) -> None:
    # The first file is read while the active one, listed already, gives its name to another.
    sink.write(lines(0, 20))
    sink.rotate()
    sink.write(lines(20, 40))
    sink.read()
    sink.write(lines(40, 60), ROTATED)
    sink.write(lines(60, 80))

    def rotation() -> None:
        sink.rotate(ROTATED_LATER)
        sink.write(lines(80, 120))

    read = sink.read(meanwhile=rotation) + sink.read()

    assert sorted(read.splitlines()) == sorted(lines(40, 120).splitlines())
    partition = {cut.data.splitlines()[0]: cut.slice.partition for cut in sink.claimed}
    assert partition[b'{"line": 60}'] == partition[b'{"line": 20}']
    assert partition[b'{"line": 80}'] not in (partition[b'{"line": 0}'], partition[b'{"line": 20}'])


def test_a_file_renamed_before_its_first_byte_was_read_is_read_under_its_own_name(
    sink: Sink,
) -> None:
    sink.write(lines(0, 20), ROTATED)
    sink.write(lines(20, 40))

    def rotation() -> None:
        sink.rotate(ROTATED_LATER)
        sink.write(lines(60, 120))

    read = sink.read(meanwhile=rotation) + sink.read()

    assert sorted(read.splitlines()) == sorted((lines(0, 40) + lines(60, 120)).splitlines())
    firsts = {cut.slice.partition: cut.data.splitlines()[0] for cut in reversed(sink.claimed)}
    assert sorted(firsts.values()) == [b'{"line": 0}', b'{"line": 20}', b'{"line": 60}']


def test_a_file_that_vanishes_between_listing_and_opening_is_passed_over(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.write(lines(0, 3), ROTATED)
    sink.write(lines(3, 6))
    listed = sink.source._files.listing()
    monkeypatch.setattr(SinkFiles, "listing", lambda _: listed)
    (sink.folder / ROTATED).unlink()

    assert sink.source.waiting({}) == len(lines(3, 6))
    assert sink.read() == lines(3, 6)


def test_a_file_that_vanishes_while_others_are_read_is_passed_over(sink: Sink) -> None:
    sink.write(lines(0, 5), ROTATED)
    sink.write(lines(5, 10), ROTATED_LATER)

    assert sink.read(meanwhile=(sink.folder / ROTATED_LATER).unlink) == lines(0, 5)


def test_a_folder_with_the_name_of_a_rotated_file_is_passed_over(sink: Sink) -> None:
    (sink.folder / ROTATED).mkdir()
    sink.write(lines(0, 3))

    assert sink.read() == lines(0, 3)


def test_a_file_that_cannot_be_read_is_named(sink: Sink) -> None:
    sink.active.symlink_to(sink.active)

    with pytest.raises(TelemetryError, match=r"events\.jsonl cannot be read: Too many levels"):
        sink.read()


def test_the_last_line_of_a_rotated_file_is_whole_without_a_newline(sink: Sink) -> None:
    sink.write(lines(0, 5)[:-1])
    assert sink.read() == lines(0, 4)
    sink.rotate()
    sink.write(b"\n" + lines(5, 8))  # the newline of the line before

    assert sink.read() == lines(0, 5)[:-1][len(lines(0, 4)) :] + b"\n" + lines(5, 8)
    assert sink.read() == b""


def test_two_files_that_start_with_an_empty_line_are_two_files(sink: Sink) -> None:
    sink.write(b"\n" + lines(0, 3))
    sink.rotate()
    sink.write(b"\n" + lines(3, 6))

    sink.read()

    assert len(sink.positions) == 2
    assert sink.read() == b""


def test_a_file_of_empty_lines_is_not_read_before_its_first_record(sink: Sink) -> None:
    sink.write(b"\n\r\n\n")
    assert sink.read() == b""

    sink.write(lines(0, 1))
    assert sink.read() == b"\n\r\n\n" + lines(0, 1)


def test_a_file_cut_off_and_grown_again_is_a_new_epoch_and_a_recorded_loss(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.read()
    (partition,) = {partition for partition, _ in sink.positions}
    reached = sink.positions[partition, 0].end
    with sink.active.open("r+b") as file:
        file.truncate(0)
    sink.write(lines(0, 1) + lines(50, 80))

    (loss,) = sink.source.losses(sink.positions)
    assert (loss.slice.partition, loss.slice.epoch, loss.reason) == (partition, 0, "truncated")
    assert (loss.slice.start, loss.slice.end) == (reached, reached)
    assert sink.read() == lines(0, 1) + lines(50, 80)
    assert set(sink.positions) == {(partition, 0), (partition, 1)}
    assert sink.read() == b""


def test_a_file_cut_off_and_shorter_than_before_is_read_from_its_start(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.read()
    sink.active.write_bytes(lines(0, 2))

    assert sink.read() == lines(0, 2)
    assert len(sink.source.losses(sink.positions)) == 1


def test_a_file_cut_off_that_starts_anew_is_another_file(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.read()
    sink.active.write_bytes(lines(50, 80))

    assert sink.read() == lines(50, 80)
    assert len({partition for partition, _ in sink.positions}) == 2


def test_a_file_cut_off_while_it_is_read_gives_no_bytes_of_the_new_one(sink: Sink) -> None:
    sink.write(lines(0, 10))

    def cut_off() -> None:
        sink.active.write_bytes(lines(50, 80))

    first = sink.read(meanwhile=cut_off)

    assert lines(0, 10).startswith(first)
    assert sink.read() == lines(50, 80)


def test_two_files_with_the_same_first_line_are_both_read(sink: Sink) -> None:
    sink.write(lines(0, 1) + lines(10, 20), ROTATED)
    sink.write(lines(0, 1) + lines(20, 25))

    read = sink.read() + sink.read()

    assert sorted(read.splitlines()) == sorted(
        (lines(0, 1) + lines(10, 20) + lines(0, 1) + lines(20, 25)).splitlines()
    )
    assert sink.read() == b""
    sink.write(lines(25, 27))
    assert sink.read() == lines(25, 27)


def test_a_copy_of_a_file_is_the_same_file(sink: Sink) -> None:
    sink.write(lines(0, 10), ROTATED)
    sink.write(lines(0, 10), ROTATED_LATER)
    assert sink.read() == lines(0, 10)

    sink.write(lines(0, 10), "events-of-a-backup.jsonl")
    assert sink.read() == b""
    assert sink.source.waiting(sink.positions) == 0


def test_claimed_bytes_can_be_read_again_after_a_rotation(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.read()
    sink.rotate()
    sink.write(lines(10, 12))

    for cut in sink.claimed:
        assert sink.source.read_again(cut.slice, sink.positions) == cut.data


def test_claimed_bytes_are_found_although_the_file_was_renamed_after_it_was_listed(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.write(lines(0, 10))
    sink.read()
    looks = [sink.source._files.listing()]
    listing = SinkFiles.listing
    monkeypatch.setattr(
        SinkFiles, "listing", lambda files: looks.pop() if looks else listing(files)
    )
    sink.rotate()

    assert sink.source.read_again(sink.claimed[0].slice, sink.positions) == sink.claimed[0].data


def test_claimed_bytes_of_a_deleted_file_are_gone(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.read()
    sink.active.unlink()

    assert sink.source.read_again(sink.claimed[0].slice, sink.positions) is None


def test_a_sink_that_is_not_mounted_is_not_taken_for_an_empty_one(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.read()
    sink.active.unlink()
    sink.folder.rmdir()

    with pytest.raises(TelemetryError, match="is not there"):
        sink.source.read_again(sink.claimed[0].slice, sink.positions)


_LINES = st.lists(st.binary(max_size=30).map(lambda text: text.replace(b"\n", b"")), max_size=25)


@given(
    parts=_LINES, slice_bytes=st.integers(1, 70), last=st.binary(max_size=20), closed=st.booleans()
)
def test_slices_joined_are_the_whole_lines_of_the_file(
    parts: list[bytes], slice_bytes: int, last: bytes, closed: bool
) -> None:
    content = b'{"head": 1}\n' + b"".join(part + b"\n" for part in parts) + last
    whole = content if closed else content[: content.rfind(b"\n") + 1]
    with tempfile.TemporaryDirectory() as folder:
        sink = Sink(Path(folder), slice_bytes)
        name = ROTATED if closed else "events.jsonl"
        sink.write(content, name)
        sink.age(sink.folder / name)

        assert sink.source.waiting({}) == len(whole)
        assert sink.read() == whole
        assert sink.read() == b""


@given(
    appended=st.lists(st.binary(max_size=60), max_size=8),
    slice_bytes=st.integers(1, 70),
    rotations=st.sets(st.integers(0, 8)),
)
def test_a_growing_and_rotating_file_loses_and_repeats_nothing(
    appended: list[bytes], slice_bytes: int, rotations: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sink = Sink(Path(folder), slice_bytes)
        written = []
        for number, data in enumerate(appended):
            sink.write(b'{"head": %d}\n' % number + data)
            written.append(b'{"head": %d}\n' % number + data)
            sink.read()
            if number in rotations:
                sink.rotate(f"events-{number:04}-size.jsonl")
        if sink.active.exists():
            sink.rotate("events-9999-size.jsonl")
        for path in sink.folder.iterdir():
            sink.age(path)
        sink.read()

        by_partition: dict[str, bytes] = {}
        for cut in sink.claimed:
            by_partition[cut.slice.partition] = (
                by_partition.get(cut.slice.partition, b"") + cut.data
            )
        assert b"".join(by_partition.values()) == b"".join(written)
