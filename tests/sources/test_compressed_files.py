"""Archives: the file they were made of, in bounded memory, and never more or less in silence."""

from __future__ import annotations

import gzip
import logging
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from file_sink import ROTATED, ROTATED_LATER, Sink, lines
from hypothesis import given
from hypothesis import strategies as st

from telemetry_pipeline.sources import sink_files
from telemetry_pipeline.sources.compressed_files import (
    ArchiveCorrupt,
    ArchiveEndsEarly,
    ArchiveTooLarge,
    Compression,
    Limits,
    decompressed,
)
from telemetry_pipeline.sources.file_content import ArchiveContent, Cutting, PlainContent

ENDINGS = [".gz", ".zst"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    return Sink(tmp_path)


@pytest.fixture(params=["gz", "zst"])
def compression(request: pytest.FixtureRequest) -> Compression:
    return request.param


@pytest.fixture(params=ENDINGS)
def ending(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every archive that is decompressed to its end, as often as it is."""
    passed = []
    survey = sink_files.survey

    def counted(chunks: Iterator[bytes], ends_of: Callable) -> sink_files.Survey:
        passed.append(chunks)
        return survey(chunks, ends_of)

    monkeypatch.setattr(sink_files, "survey", counted)
    return passed


def varied(size: int, seed: int = 0) -> bytes:
    """Lines that compress as telemetry does, not as zeros do."""
    chance = random.Random(seed)
    text = b"".join(b'{"n": %d}\n' % chance.randrange(10**12) for _ in range(size // 16))
    return text[: text.rfind(b"\n", 0, size) + 1]


def test_an_archive_of_a_file_already_read_is_the_same_file(sink: Sink, ending: str) -> None:
    sink.write(lines(0, 10), ROTATED)
    assert sink.run() == lines(0, 10)
    sink.compress(ending=ending)

    assert sink.waiting == 0
    assert sink.run() == b""
    assert sink.lost == []
    assert len({cut.slice.partition for cut in sink.claimed}) == 1


def test_an_archive_beside_the_file_it_was_made_of_is_a_copy(sink: Sink, ending: str) -> None:
    sink.write(lines(0, 10), ROTATED)
    sink.compress(ending=ending, keep=True)

    assert sink.waiting == len(lines(0, 10))
    assert sink.run() == lines(0, 10)
    assert sink.run() == b""


def test_an_archive_of_a_half_read_file_is_read_on(sink: Sink, ending: str) -> None:
    sink.write(lines(0, 40), ROTATED)
    read = sink.run(most_slices=3)
    assert 0 < len(read) < len(lines(0, 40))
    sink.compress(ending=ending)

    assert sink.waiting == len(lines(0, 40)) - len(read)
    assert read + sink.run() == lines(0, 40)
    assert sink.lost == []
    assert len(sink.claimed[0].slice.partition) == 32
    assert len({(cut.slice.partition, cut.slice.epoch) for cut in sink.claimed}) == 1


def test_an_archive_that_was_never_seen_as_a_file_is_read(sink: Sink, ending: str) -> None:
    sink.write(lines(0, 40), ROTATED)
    sink.compress(ending=ending)

    assert sink.run() == lines(0, 40)
    assert sink.waiting == 0


def test_an_archive_of_the_active_file_itself_is_read(sink: Sink, ending: str) -> None:
    sink.write(lines(0, 5))
    sink.compress("events.jsonl", ending)
    sink.write(lines(5, 8))

    assert sorted(sink.run().splitlines()) == sorted(lines(0, 8).splitlines())


def test_slices_of_an_archive_are_those_of_the_file(
    sink: Sink, tmp_path: Path, ending: str
) -> None:
    plain = Sink(tmp_path / "plain")
    plain.folder.mkdir()
    plain.write(varied(5000), ROTATED)
    plain.run()
    sink.write(varied(5000), ROTATED)
    sink.compress(ending=ending)
    sink.run()

    assert [cut.slice for cut in sink.claimed] == [cut.slice for cut in plain.claimed]
    assert [cut.tail_sha256 for cut in sink.claimed] == [cut.tail_sha256 for cut in plain.claimed]


def test_claimed_bytes_are_read_again_from_an_archive(sink: Sink, ending: str) -> None:
    sink.write(lines(0, 40), ROTATED)
    sink.run()
    sink.compress(ending=ending)
    sink.run()  # the ledger knows by now that it holds nothing new

    for cut in sink.claimed:
        assert sink.read_again(cut.slice) == cut.data


def test_several_members_are_one_file(sink: Sink) -> None:
    several = b"".join(gzip.compress(lines(n, n + 5)) for n in range(0, 20, 5)) + b"\0" * 512
    sink.write(several, ROTATED + ".gz")
    frames = b"".join(zstandard.compress(lines(n, n + 5)) for n in range(20, 40, 5))
    sink.write(frames, ROTATED_LATER + ".zst")

    assert sorted(sink.run().splitlines()) == sorted(lines(0, 40).splitlines())
    assert sink.lost == []


def test_an_unfinished_archive_is_not_there_yet(sink: Sink, ending: str) -> None:
    sink.write(varied(9000), ROTATED)
    whole = sink.compress(ending=ending).read_bytes()
    archive = sink.folder / (ROTATED + ending)
    for part in (0, 1, 3, 12, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:part])
        assert (sink.waiting, sink.run(), sink.lost) == (0, b"", []), part

    archive.write_bytes(whole)
    assert sink.run() == varied(9000)


def test_a_file_whose_archive_is_still_being_written_has_not_disappeared(sink: Sink) -> None:
    sink.write(varied(9000), ROTATED)
    sink.run(most_slices=2)
    archive = sink.compress()
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-4])

    assert (sink.waiting, sink.run(), sink.lost) == (0, b"", [])
    archive.write_bytes(whole)
    sink.run()
    assert b"".join(cut.data for cut in sink.claimed) == varied(9000)


def test_an_archive_that_nobody_finishes_is_read_as_far_as_it_goes(sink: Sink, ending: str) -> None:
    data = varied(600_000)
    sink.slice_bytes = 50_000
    sink.write(data, ROTATED)
    archive = sink.compress(ending=ending)
    archive.write_bytes(archive.read_bytes()[:-1000])
    sink.age(archive)

    read = sink.run()
    assert data.startswith(read) and read.endswith(b"\n") and len(read) > 100_000
    (loss,) = sink.lost
    assert (loss.reason, loss.slice.start) == ("archive_truncated", len(read))
    assert (sink.waiting, sink.run(), len(sink.lost)) == (0, b"", 1)


def test_the_rest_of_a_damaged_archive_is_read_once_it_is_whole(sink: Sink, ending: str) -> None:
    data = varied(600_000)
    sink.slice_bytes = 50_000
    sink.write(data, ROTATED)
    archive = sink.compress(ending=ending)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1000])
    sink.age(archive)
    sink.run()
    assert len(sink.lost) == 1
    archive.write_bytes(whole)

    sink.run()
    assert b"".join(cut.data for cut in sink.claimed) == data


def test_what_stands_before_the_damage_is_read_and_the_rest_recorded(
    sink: Sink, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = varied(600_000)
    sink.slice_bytes = 50_000
    sink.write(data, ROTATED)
    sink.note_reach(sink.source.reach({}))
    archive = sink.compress(ending=ending)
    damaged = bytearray(archive.read_bytes())
    for place in range(len(damaged) // 2, len(damaged) // 2 + 200):
        damaged[place] ^= 0x5A
    archive.write_bytes(damaged)

    with caplog.at_level(logging.ERROR):
        read = sink.run()
    # The damage shows some bytes later than it is: what those stand for is no JSON any more.
    assert read[: len(data) * 2 // 5] == data[: len(data) * 2 // 5]
    assert read.endswith(b"\n") and len(read) < len(data)
    (loss,) = sink.lost
    assert loss.reason == "archive_corrupt"
    assert (loss.slice.start, loss.slice.end) == (len(read), len(data))
    assert "it is corrupt" in caplog.text and str(archive) in caplog.text
    assert (sink.run(), sink.waiting, len(sink.lost)) == (b"", 0, 1)


def test_gzip_is_read_to_the_byte_before_the_damage(tmp_path: Path) -> None:
    data = varied(200_000)
    damaged = bytearray(gzip.compress(data))
    place = len(damaged) // 2
    damaged[place : place + 50] = b"\xff" * 50
    path = tmp_path / "damaged.gz"
    path.write_bytes(damaged)

    read = read_until_it_fails(path, "gz", ArchiveCorrupt)

    # A deflated byte stands for few bytes of text: nothing before the damaged ones is given up.
    assert len(data) * 0.45 < len(read) < len(data)
    assert data.startswith(read[: int(len(data) * 0.45)])


def test_a_wrong_checksum_is_a_loss_although_all_was_read(sink: Sink) -> None:
    archive = bytearray(gzip.compress(lines(0, 9)))
    archive[-6] ^= 1
    sink.write(archive, ROTATED + ".gz")

    assert sink.run() == lines(0, 9)
    sink.run()
    assert [loss.reason for loss in sink.lost] == ["archive_corrupt"]
    assert (sink.waiting, sink.run(), len(sink.lost)) == (0, b"", 1)


def test_a_file_that_only_has_the_name_of_an_archive_is_a_recorded_loss(
    sink: Sink, ending: str
) -> None:
    sink.write(lines(0, 9), ROTATED + ending)

    assert sink.waiting > 0
    assert sink.run() == b""
    (loss,) = sink.lost
    assert (loss.reason, loss.slice.end) == ("archive_corrupt", len(lines(0, 9)))
    assert (sink.waiting, sink.run(), len(sink.lost)) == (0, b"", 1)


def bomb(compression: str, size: int) -> bytes:
    """`size` zeros behind one record."""
    if compression == "zst":
        return zstandard.ZstdCompressor(level=3).compress(lines(0, 1) + bytes(size))
    return gzip.compress(lines(0, 1) + bytes(size))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_bytes=2**20, max_ratio=10**9),
        Limits(max_bytes=2**40, max_ratio=20, ratio_from=2**20),
    ],
    ids=["bytes", "ratio"],
)
def test_a_bomb_is_not_read_but_recorded(sink: Sink, ending: str, limits: Limits) -> None:
    sink.limits = limits
    sink.write(bomb(ending[1:], 3 * 2**20), ROTATED + ending)
    sink.write(lines(0, 5))

    assert sink.run() == lines(0, 5)
    (loss,) = sink.lost
    assert (loss.reason, loss.slice.end) == ("decompressed_too_large", 2**20)
    assert (sink.waiting, sink.run(), len(sink.lost)) == (0, b"", 1)


def test_a_bomb_that_is_known_is_not_decompressed_again(sink: Sink, passes: list[Path]) -> None:
    sink.limits = Limits(max_bytes=2**20)
    sink.write(bomb("gz", 3 * 2**20), ROTATED + ".gz")
    sink.run()
    passes.clear()

    sink.run()
    assert passes == []


def test_an_archive_is_read_once_the_limits_allow_it(sink: Sink) -> None:
    sink.limits = Limits(max_bytes=1000)
    sink.write(gzip.compress(varied(5000)), ROTATED + ".gz")
    assert sink.run() == b""

    sink.limits = Limits(max_bytes=10_000)
    assert sink.waiting == len(varied(5000))
    assert sink.run() == varied(5000)


def test_a_small_archive_of_equal_lines_is_no_bomb(sink: Sink, ending: str) -> None:
    sink.slice_bytes = 2**20
    sink.write(lines(0, 1) * 200_000, ROTATED)
    archive = sink.compress(ending=ending)
    assert archive.stat().st_size * 200 < 200_000 * len(lines(0, 1))

    assert sink.run() == lines(0, 1) * 200_000


def test_a_bomb_takes_little_memory(tmp_path: Path, compression: Compression) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(bomb(compression, 300 * 2**20))
    tracemalloc.start()
    with path.open("rb", buffering=0) as file, pytest.raises(ArchiveTooLarge):
        for _ in decompressed(file, compression, Limits()):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 70 * 2**20


def test_a_line_without_end_is_cut_into_pieces_that_are_held_one_at_a_time(
    sink: Sink, ending: str
) -> None:
    sink.slice_bytes, sink.max_line_bytes = 100_000, 300_000
    data = lines(0, 3) + b"x" * 2_000_000 + b"\n" + lines(3, 6)
    sink.write(data, ROTATED)
    sink.compress(ending=ending)

    assert sink.run() == data
    assert max(len(cut.data) for cut in sink.claimed) <= 300_000


def test_slices_of_an_archive_are_held_once(tmp_path: Path, compression: Compression) -> None:
    slice_bytes = 4 * 2**20
    path = tmp_path / "archive"
    data = varied(3 * slice_bytes)
    path.write_bytes(COMPRESS[compression](data))
    size = len(data)
    del data
    with path.open("rb", buffering=0) as file:
        tracemalloc.start()
        content = ArchiveContent(file, compression, Limits(), Cutting(slice_bytes, 2 * slice_bytes))
        start = 0
        while start < size:
            start += len(content.records(start, size))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 1.6 * slice_bytes


def read_until_it_fails(path: Path, compression: Compression, error: type[Exception]) -> bytes:
    read = []
    with path.open("rb", buffering=0) as file, pytest.raises(error):
        read.extend(decompressed(file, compression, Limits()))
        raise AssertionError(b"".join(read))
    return b"".join(read)


def test_every_cut_of_an_archive_gives_a_beginning_of_its_bytes(
    tmp_path: Path, compression: Compression
) -> None:
    data = varied(20_000)
    whole = COMPRESS[compression](data)
    path = tmp_path / "cut"
    for part in {0, 1, 2, 10, 17, *range(20, len(whole), 997), len(whole) - 1}:
        path.write_bytes(whole[:part])
        read = []
        with path.open("rb", buffering=0) as file, pytest.raises(ArchiveEndsEarly):
            for chunk in decompressed(file, compression, Limits()):
                read.append(chunk)
        assert data.startswith(b"".join(read))


@given(
    parts=st.lists(st.binary(max_size=60), max_size=20),
    slice_bytes=st.integers(1, 90),
    line_bytes=st.integers(1, 200),
    asked=st.lists(st.integers(0, 1500), max_size=5),
)
def test_an_archive_and_a_file_of_the_same_bytes_answer_alike(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[bytes],
    slice_bytes: int,
    line_bytes: int,
    asked: list[int],
) -> None:
    data = b"\n".join(parts)
    cutting = Cutting(slice_bytes, max(slice_bytes, line_bytes))
    folder = tmp_path_factory.mktemp("alike")
    for compression, compress in COMPRESS.items():
        (folder / "plain").write_bytes(data)
        (folder / "archive").write_bytes(compress(data))
        with (
            (folder / "plain").open("rb", buffering=0) as one,
            (folder / "archive").open("rb", buffering=0) as other,
        ):
            plain = PlainContent(one, cutting)
            archive = ArchiveContent(other, compression, Limits(), cutting)  # type: ignore[arg-type]
            start = 0
            while start < len(data):
                piece = archive.records(start, len(data))
                assert piece == plain.records(start, len(data)) != b""
                start += len(piece)
                assert archive.hash_before(start) == plain.hash_before(start)
            for place in asked:
                place = min(place, len(data))
                assert archive.hash_before(place) == plain.hash_before(place)
                assert archive.read(place, place + 50) == plain.read(place, place + 50)


def test_an_archive_that_holds_nothing_new_is_decompressed_once_in_a_process(
    sink: Sink, passes: list[Path], ending: str
) -> None:
    sink.write(lines(0, 50), ROTATED)
    sink.run()
    sink.compress(ending=ending)
    for _ in range(5):
        assert sink.waiting == 0
    assert len(passes) == 1


def test_no_later_process_decompresses_an_archive_that_the_ledger_knows(
    sink: Sink, passes: list[Path], ending: str
) -> None:
    sink.write(lines(0, 50), ROTATED)
    sink.compress(ending=ending)
    sink.run()
    sink.run()
    sink_files._known.clear()
    passes.clear()

    assert sink.run() == b""
    assert (sink.waiting, passes, sink.lost) == (0, [], [])


def test_the_beginning_of_an_archive_that_was_read_is_not_read_again(
    sink: Sink, ending: str
) -> None:
    sink.write(lines(0, 50), ROTATED)
    sink.compress(ending=ending)
    sink.run()
    sink.run()
    sink.write(lines(0, 20), ROTATED_LATER)

    assert (sink.waiting, sink.run(), sink.lost) == (0, b"", [])


def test_a_changed_archive_of_the_same_name_and_size_is_read(sink: Sink) -> None:
    one, other = (gzip.compress(varied(3000, seed)) for seed in (1, 2))
    padded = max(len(one), len(other))
    archive = sink.folder / (ROTATED + ".gz")
    archive.write_bytes(one.ljust(padded, b"\0"))
    assert sink.run() == varied(3000, 1)
    sink.run()
    archive.write_bytes(other.ljust(padded, b"\0"))

    assert sink.run() == varied(3000, 2)
