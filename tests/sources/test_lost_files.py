"""What vanishes before it was read is recorded, once; what only moved is not."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest
from file_sink import ROTATED, ROTATED_LATER, Sink, lines

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources import sink_files
from telemetry_pipeline.sources.sink_files import SinkFiles


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    return Sink(tmp_path)


def recorded(sink: Sink) -> list[tuple[int, int, str]]:
    return [(loss.slice.start, loss.slice.end, loss.reason) for loss in sink.lost]


def seen_but_not_read(sink: Sink, data: bytes, name: str) -> None:
    """A run looked at the file and ended before its first slice."""
    sink.write(data, name)
    sink.run(most_slices=0)


def test_a_file_that_disappears_half_read_is_a_loss_of_the_rest(sink: Sink) -> None:
    sink.write(lines(0, 40), ROTATED)
    read = sink.run(most_slices=2)
    (sink.folder / ROTATED).unlink()

    assert sink.waiting == len(lines(0, 40)) - len(read), "a tick alone starts the run"
    sink.run()
    assert recorded(sink) == [(len(read), len(lines(0, 40)), "disappeared")]
    assert (sink.waiting, sink.run(), len(sink.lost)) == (0, b"", 1)


def test_a_file_that_disappears_unread_is_a_loss_of_all(sink: Sink) -> None:
    seen_but_not_read(sink, lines(0, 40), ROTATED)
    (sink.folder / ROTATED).unlink()

    sink.run()
    assert recorded(sink) == [(0, len(lines(0, 40)), "disappeared")]


def test_a_file_that_was_read_may_be_deleted(sink: Sink) -> None:
    sink.write(lines(0, 40), ROTATED)
    sink.run()
    (sink.folder / ROTATED).unlink()

    assert (sink.waiting, sink.run(), sink.lost) == (0, b"", [])


def test_a_file_that_comes_back_is_late_and_not_read_twice(sink: Sink) -> None:
    sink.write(lines(0, 40), ROTATED)
    read = sink.run(most_slices=2)
    (sink.folder / ROTATED).rename(sink.folder / "elsewhere")
    sink.run()
    assert len(sink.lost) == 1
    (sink.folder / "elsewhere").rename(sink.folder / ROTATED_LATER)

    assert read + sink.run() == lines(0, 40)
    assert len(sink.lost) == 1


def test_what_came_back_and_grew_is_a_new_loss_when_it_disappears_again(sink: Sink) -> None:
    seen_but_not_read(sink, lines(0, 10), ROTATED)
    away = (sink.folder / ROTATED).rename(sink.folder / "elsewhere")
    sink.run()
    away.rename(sink.folder / ROTATED)
    sink.write(lines(10, 15), ROTATED)
    sink.run(most_slices=0)
    (sink.folder / ROTATED).unlink()
    sink.run()

    ten, fifteen = len(lines(0, 10)), len(lines(0, 15))
    assert recorded(sink) == [(0, ten, "disappeared"), (ten, fifteen, "disappeared")]


def test_a_half_written_line_that_goes_with_its_file_is_a_loss(sink: Sink) -> None:
    sink.write(lines(0, 3) + b'{"line": ')
    sink.run()
    sink.active.write_bytes(lines(9, 12))

    assert sink.run() == lines(9, 12)
    end = len(lines(0, 3))
    assert recorded(sink) == [(end, end + len(b'{"line": '), "disappeared")]


def test_a_collector_that_starts_again_and_truncates_takes_what_was_unread(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.run()
    sink.write(lines(10, 20))
    sink.run(most_slices=1)
    sink.active.write_bytes(lines(50, 52))  # `append: false`

    assert sink.run() == lines(50, 52)
    (loss,) = sink.lost
    assert (loss.reason, loss.slice.end) == ("disappeared", len(lines(0, 20)))
    assert sink.run() == b""


def test_a_file_cut_off_below_what_was_seen_is_a_loss_and_goes_on_as_a_new_epoch(
    sink: Sink,
) -> None:
    sink.write(lines(0, 20))
    read = sink.run(most_slices=1)
    os.truncate(sink.active, len(read) + len(lines(0, 3)))
    sink.write(lines(80, 82))

    sink.run()
    assert recorded(sink) == [(len(read), len(lines(0, 20)), "truncated")]
    claimed = b"".join(cut.data for cut in sink.claimed)
    assert set((lines(0, 3) + lines(80, 82)).splitlines()) <= set(claimed.splitlines())
    assert (sink.waiting, sink.run(), len(sink.lost)) == (0, b"", 1)


def test_a_truncation_is_recorded_once(sink: Sink) -> None:
    sink.write(lines(0, 10))
    sink.run()
    sink.active.write_bytes(lines(0, 2))
    for _ in range(3):
        sink.run()

    assert recorded(sink) == [(len(lines(0, 10)), len(lines(0, 10)), "truncated")]
    assert sink.waiting == 0


def test_a_folder_that_is_not_there_says_nothing_about_its_files(sink: Sink) -> None:
    seen_but_not_read(sink, lines(0, 10), ROTATED)
    sink.folder.rename(away := sink.folder.with_name("unmounted"))

    for look in (sink.source.waiting, sink.source.losses, sink.source.reach):
        with pytest.raises(TelemetryError, match=r"source app: .* is not there, and not all of it"):
            look(sink.positions)
    away.rename(sink.folder)
    assert sink.run() == lines(0, 10)
    assert sink.lost == []


def test_a_folder_that_is_not_there_is_no_problem_once_all_was_read(sink: Sink) -> None:
    sink.write(lines(0, 10), ROTATED)
    sink.run()
    sink.folder.rename(sink.folder.with_name("unmounted"))

    assert (sink.waiting, sink.source.losses(sink.positions)) == (0, [])


def test_a_file_renamed_while_the_folder_is_listed_has_not_disappeared(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listing names it as the active file; when that is opened, it has another name."""
    sink.write(lines(0, 10))
    sink.run(most_slices=1)
    listing = SinkFiles.listing

    def rotation_behind_the_listing(files: SinkFiles) -> dict[str, int]:
        listed = listing(files)
        if sink.active.exists():
            sink.rotate()
        return listed

    monkeypatch.setattr(SinkFiles, "listing", rotation_behind_the_listing)

    assert sink.source.losses(sink.positions) == []


def test_a_folder_that_never_keeps_still_proves_no_loss(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen_but_not_read(sink, lines(0, 10), ROTATED)
    (sink.folder / ROTATED).unlink()
    listing, number = SinkFiles.listing, iter(range(100))

    def busy(files: SinkFiles) -> dict[str, int]:
        sink.write(lines(50, 52), f"events-{next(number)}-size.jsonl")
        return listing(files)

    monkeypatch.setattr(SinkFiles, "listing", busy)
    assert sink.source.losses(sink.positions) == []

    monkeypatch.undo()
    assert len(sink.source.losses(sink.positions)) == 1


def test_a_rotation_a_compression_or_a_copy_is_no_loss(sink: Sink) -> None:
    seen_but_not_read(sink, lines(0, 10), "events.jsonl")
    sink.rotate()
    sink.run(most_slices=1)
    sink.compress()
    sink.run(most_slices=1)
    archive = (sink.folder / (ROTATED + ".gz")).rename(sink.folder / (ROTATED_LATER + ".gz"))
    sink.write(gzip.decompress(archive.read_bytes()), ROTATED)
    archive.unlink()
    sink.run()

    assert sink.lost == []
    assert b"".join(cut.data for cut in sink.claimed) == lines(0, 10)


# --- files that begin alike -------------------------------------------------------------------

HEAD = b'{"head": "' + b"x" * 5000 + b'"}\n'


@pytest.mark.parametrize("head", [lines(0, 1), HEAD], ids=["first line", "first 4 KB"])
def test_files_alive_at_once_that_begin_alike_are_both_read(sink: Sink, head: bytes) -> None:
    sink.write(head + lines(10, 20), ROTATED)
    sink.write(head + lines(30, 40), ROTATED_LATER)
    sink.write(head + lines(50, 55))

    read = sink.run()
    wanted = head * 3 + lines(10, 20) + lines(30, 40) + lines(50, 55)
    assert sorted(read.splitlines()) == sorted(wanted.splitlines())
    assert {epoch for _, epoch in sink.positions} == {0, 1, 2}
    assert (sink.waiting, sink.run(), sink.lost) == (0, b"", [])


def test_files_that_differ_only_in_the_middle_are_both_read(sink: Sink) -> None:
    tail = lines(1000, 2000)  # longer than what the ledger compares
    sink.slice_bytes = 10**6
    sink.write(HEAD + lines(10, 20) + tail, ROTATED)
    sink.write(HEAD + lines(30, 40) + tail, ROTATED_LATER)

    read = sink.run()
    assert len(read) == 2 * len(HEAD + lines(10, 20) + tail)
    assert set((lines(10, 20) + lines(30, 40)).splitlines()) <= set(read.splitlines())
    assert (sink.waiting, sink.run()) == (0, b"")


def test_files_that_begin_alike_may_both_grow(sink: Sink) -> None:
    for turn in range(4):
        sink.write((HEAD if turn == 0 else b"") + lines(turn, turn + 1), ROTATED)
        sink.write((HEAD if turn == 0 else b"") + lines(turn + 10, turn + 12), ROTATED_LATER)
        sink.run()

    claimed = b"".join(cut.data for cut in sink.claimed)
    assert sorted(claimed.splitlines()) == sorted(
        (HEAD * 2 + lines(0, 4) + b"".join(lines(n + 10, n + 12) for n in range(4))).splitlines()
    )
    assert sink.lost == []


def test_a_file_that_begins_as_one_read_and_gone_is_read(sink: Sink) -> None:
    sink.write(HEAD + lines(0, 5), ROTATED)
    sink.run()
    (sink.folder / ROTATED).unlink()
    sink.write(HEAD + lines(5, 10), ROTATED)  # of the same length

    assert sink.run() == HEAD + lines(5, 10)


def test_a_copy_in_progress_is_the_same_file_at_every_length(sink: Sink) -> None:
    data = HEAD + lines(0, 50)
    sink.write(data)
    sink.run(most_slices=2)
    for length in (10, 4096, len(HEAD), len(HEAD) + 5, len(data) - 1, len(data)):
        (sink.folder / ROTATED).write_bytes(data[:length])
        sink.run(most_slices=0)
        assert len(sink.positions) == 1, length
    sink.run()
    assert (sink.waiting, sink.lost) == (0, [])
    assert b"".join(cut.data for cut in sink.claimed) == data


def test_a_file_that_is_moved_in_slowly_is_not_read_in_the_middle_of_a_line(sink: Sink) -> None:
    data = lines(0, 10)
    for length in (5, 20, 33, len(data)):
        (sink.folder / ROTATED).write_bytes(data[:length])
        sink.run()

    assert b"".join(cut.data for cut in sink.claimed) == data
    assert all(cut.data.endswith(b"\n") for cut in sink.claimed)


def test_copies_that_go_separate_ways_are_both_read(sink: Sink) -> None:
    sink.write(HEAD, ROTATED)
    sink.write(HEAD, ROTATED_LATER)
    assert sink.run() == HEAD
    sink.write(lines(1, 3), ROTATED)
    sink.write(lines(5, 9), ROTATED_LATER)

    read = sink.run()
    assert set((lines(1, 3) + lines(5, 9)).splitlines()) <= set(read.splitlines())
    assert (sink.waiting, sink.run(), sink.lost) == (0, b"", [])


# --- odd files ---------------------------------------------------------------------------------


def test_a_byte_order_mark_belongs_to_its_line(sink: Sink) -> None:
    sink.write(b"\xef\xbb\xbf" + lines(0, 3))

    assert sink.run() == b"\xef\xbb\xbf" + lines(0, 3)


def test_a_rotated_file_that_ends_in_half_a_record_is_read_once_nobody_writes(sink: Sink) -> None:
    sink.write(lines(0, 3) + b'{"line"', ROTATED)
    assert sink.run() == lines(0, 3)
    assert sink.waiting == 0
    sink.age(sink.folder / ROTATED, 60)

    assert sink.waiting == len(b'{"line"')
    assert sink.run() == b'{"line"'


def test_a_rotated_file_of_one_record_without_newline_is_read_at_once(sink: Sink) -> None:
    sink.write(b'{"line": 1}', ROTATED)
    assert sink.run() == b'{"line": 1}'


@pytest.mark.parametrize(
    "first",
    [b"\x28\xb5\x2f\xfd\x04\x00", b"\x0a\x10\x12\x00"],
    ids=["compression: zstd", "format: proto"],
)
@pytest.mark.parametrize("name", ["events.jsonl", ROTATED, ROTATED + ".zst"])
def test_length_prefixed_messages_are_a_loss_that_says_what_to_change(
    sink: Sink, name: str, first: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    message = first + b"\n" * 40 + bytes(60)
    sink.write(len(message).to_bytes(4, "big") + message, name)
    sink.write(lines(0, 3), ROTATED_LATER)

    assert sink.waiting > len(lines(0, 3))
    assert sink.run() == lines(0, 3)
    assert [loss.reason for loss in sink.lost] == ["length_prefixed_messages"]
    assert "take `compression` and `format: proto` out of" in caplog.text
    sink.write(len(message).to_bytes(4, "big") + message, name)
    assert (sink.waiting, sink.run(), len(sink.lost)) == (0, b"", 1)


def test_a_file_of_zeros_after_a_power_cut_is_read_as_it_is(sink: Sink) -> None:
    sink.write(bytes(5000) + lines(0, 2))
    assert sink.run() == bytes(5000) + lines(0, 2)


def test_a_line_without_end_is_read_in_pieces(sink: Sink) -> None:
    sink.slice_bytes, sink.max_line_bytes = 1000, 3000
    sink.write(lines(0, 2) + b"x" * 10_000)
    sink.run()
    assert sink.waiting == 0
    sink.write(b"x" * 10_000 + b"\n" + lines(2, 4))
    sink.run()

    claimed = b"".join(cut.data for cut in sink.claimed)
    assert claimed == lines(0, 2) + b"x" * 20_000 + b"\n" + lines(2, 4)
    assert max(len(cut.data) for cut in sink.claimed) <= 3000
    assert sink.claimed[-1].data.endswith(lines(2, 4))


# --- what a tick costs, and what it may not overlook --------------------------------------------


def test_an_inode_used_again_with_the_same_size_and_time_is_another_file(sink: Sink) -> None:
    path = sink.folder / ROTATED
    sink.write(lines(10, 20), ROTATED)
    before = path.stat()
    assert sink.run() == lines(10, 20)
    path.write_bytes(lines(30, 40))  # same inode, same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ino == before.st_ino

    assert sink.waiting == len(lines(30, 40))
    assert sink.run() == lines(30, 40)


def test_a_change_within_the_grain_of_the_clock_is_seen(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system with coarse times gives an old file and its successor one signature."""
    path = sink.folder / ROTATED
    sink.write(lines(10, 20), ROTATED)
    status = path.stat()
    monkeypatch.setattr(
        sink_files.Signature,
        "of",
        classmethod(
            lambda cls, now: cls(1, 2, now.st_size, status.st_mtime_ns, status.st_ctime_ns)
        ),
    )
    assert sink.run() == lines(10, 20)
    assert sink.waiting == 0
    path.write_bytes(lines(30, 40))

    assert sink.waiting == len(lines(30, 40))
    assert sink.run() == lines(30, 40)


def test_what_was_learned_long_ago_is_not_believed_when_bytes_are_read(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is cut off and grows again under a signature that does not change at all."""
    sink.write(lines(10, 20))
    monkeypatch.setattr(sink_files.Signature, "is_old", True)
    monkeypatch.setattr(
        sink_files.Signature, "of", classmethod(lambda cls, now: cls(1, 2, now.st_size, 3, 4))
    )
    sink.run(most_slices=1)
    sink.active.write_bytes(lines(30, 40))  # the same length

    assert b"".join(cut.data for cut in sink.source.read_new(sink.positions)) == b""


def test_an_idle_tick_over_a_thousand_files_is_cheap(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_files, "is_settled", lambda *_: True)
    for number in range(1000):
        sink.write(lines(number, number + 3), f"events-{number:04}-size.jsonl")
    sink.run()
    assert sink.waiting == 0
    opened = []
    plain = sink_files._opened
    monkeypatch.setattr(sink_files, "_opened", lambda path: opened.append(path) or plain(path))

    took = []
    for _ in range(3):
        started = time.process_time()
        assert sink.waiting == 0
        took.append(time.process_time() - started)

    assert opened == []
    assert min(took) < 0.1


def test_files_that_are_gone_are_forgotten(sink: Sink) -> None:
    for number in range(20):
        sink.write(lines(number, number + 3), f"events-{number:04}-size.jsonl")
    sink.run()
    for path in sink.folder.iterdir():
        path.unlink()
    sink.run()

    assert not [key for key in sink_files._known if key[0].parent == sink.folder]
