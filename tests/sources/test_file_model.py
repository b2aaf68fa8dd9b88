"""The file source against a simple model of a sink: whatever happens to the files, every record is
read once or lies in a recorded loss, but for what came and went between two looks."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from file_sink import Sink
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from telemetry_pipeline.sources.base import Loss, Slice, SliceData

ACTIVE = "events.jsonl"


def record(number: int) -> bytes:
    return b'{"record": %d, "of": "%s"}\n' % (number, b"x" * (number * 7 % 40))


@dataclass
class File:
    """What a file holds, decompressed; `half` of a record may stand at its end."""

    content: bytes = b""
    half: bytes = b""

    @property
    def partition(self) -> str:
        first = self.content[: self.content.index(b"\n") + 1]
        return hashlib.sha256(first).hexdigest()[:32]

    def places(self) -> dict[bytes, tuple[int, int]]:
        """Where each record stands."""
        found, start = {}, 0
        for line in self.content.splitlines(keepends=True):
            found[line] = (start, start + len(line))
            start += len(line)
        return found


@dataclass
class Destroyed:
    """Records that went unread after a run had seen them: a loss must cover each."""

    partition: str
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict)


class SinkMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.sink = Sink(self.folder, slice_bytes=90)
        self.files: dict[str, File] = {}
        self.records = 0
        self.seen: set[bytes] = set()
        self.destroyed: list[Destroyed] = []
        self.gone: set[bytes] = set()
        self.may_be_read_twice: set[bytes] = set()
        self.landed: list[bytes] = []
        self.settled: set[Slice] = set()
        self.claimed: SliceData | None = None
        self.unfinished: dict[str, str] = {}

    def teardown(self) -> None:
        self.settle()
        shutil.rmtree(self.folder)

    # --- the Collector ---

    @rule(count=st.integers(1, 6))
    def append(self, count: int) -> None:
        file = self.files.setdefault(ACTIVE, File())
        self.complete()
        for _ in range(count):
            file.content += self.new_record()
        self.write(ACTIVE)

    @rule(part=st.integers(1, 10))
    def append_half(self, part: int) -> None:
        file = self.files.setdefault(ACTIVE, File())
        self.complete()
        file.half = self.new_record()[:part]
        self.write(ACTIVE)

    @precondition(lambda self: ACTIVE in self.files)
    @rule()
    def rotate(self) -> None:
        name = f"events-{self.records:06}-size.jsonl"
        if (self.folder / name).exists() or name + ".gz" in self.files:
            return
        (self.folder / ACTIVE).rename(self.folder / name)
        self.files[name] = self.files.pop(ACTIVE)

    @precondition(lambda self: ACTIVE in self.files)
    @rule()
    def restart_and_truncate(self) -> None:
        self.destroy(self.files.pop(ACTIVE))
        (self.folder / ACTIVE).write_bytes(b"")

    @precondition(lambda self: ACTIVE in self.files and self.files[ACTIVE].content)
    @rule(kept=st.integers(1, 4))
    def truncate_in_place(self, kept: int) -> None:
        file = self.files[ACTIVE]
        if any(other.content and other.partition == file.partition for other in self.others(file)):
            return  # a longer copy would hide it until the next look
        rest = b"".join(file.content.splitlines(keepends=True)[:kept])
        self.files[ACTIVE] = File(rest)
        self.may_be_read_twice |= set(File(rest).places())
        self.destroy(file)
        self.write(ACTIVE)
        # Bytes that a run saw and that others replace before the next look are not missed.
        self.run(0)

    # --- whoever keeps house ---

    @precondition(lambda self: self.rotated())
    @rule(choice=st.integers(0), ending=st.sampled_from([".gz", ".zst"]))
    def compress(self, choice: int, ending: str) -> None:
        name = self.pick(choice)
        if not name.endswith(".jsonl") or name in self.unfinished:
            return
        (self.folder / (name + ending)).write_bytes(self.compressed(name, ending))
        (self.folder / name).unlink()
        self.files[name + ending] = self.files.pop(name)

    @precondition(lambda self: self.rotated())
    @rule(choice=st.integers(0), share=st.floats(0, 0.99))
    def begin_to_compress(self, choice: int, share: float) -> None:
        name = self.pick(choice)
        if not name.endswith(".jsonl"):
            return
        whole = self.compressed(name, ".gz")
        (self.folder / (name + ".gz")).write_bytes(whole[: int(len(whole) * share)])
        self.unfinished[name] = name + ".gz"

    @precondition(lambda self: self.unfinished)
    @rule()
    def end_compressing(self) -> None:
        name, archive = self.unfinished.popitem()
        (self.folder / archive).write_bytes(self.compressed(name, ".gz"))
        (self.folder / name).unlink()
        self.files[archive] = self.files.pop(name)

    @precondition(lambda self: self.rotated())
    @rule(choice=st.integers(0))
    def delete(self, choice: int) -> None:
        name = self.pick(choice)
        if name in self.unfinished:
            return
        (self.folder / name).unlink()
        self.destroy(self.files.pop(name))

    @precondition(lambda self: any(file.content for file in self.files.values()))
    @rule(choice=st.integers(0))
    def copy(self, choice: int) -> None:
        names = sorted(name for name, file in self.files.items() if file.content)
        name = names[choice % len(names)]
        ending = Path(name).suffix
        copy = f"events-copy{len(self.files):03}-size.jsonl{'' if ending == '.jsonl' else ending}"
        if (self.folder / copy).exists():
            return
        shutil.copyfile(self.folder / name, self.folder / copy)
        self.files[copy] = File(self.files[name].content, self.files[name].half)

    # --- the loader ---

    @rule(most=st.integers(0, 4))
    def run(self, most: int) -> None:
        self.take_over()
        self.seen |= self.alive()
        before = len(self.sink.claimed)
        self.sink.run(most_slices=most)
        for cut in self.sink.claimed[before:]:
            self.land(cut)

    @rule()
    def crash_between_claim_and_land(self) -> None:
        self.run(0)
        self.sink.run(most_slices=1)
        if self.sink.claimed and self.sink.claimed[-1].slice not in self.settled:
            self.claimed = self.sink.claimed[-1]

    @rule(most=st.integers(1, 4))
    def rotate_while_reading(self, most: int) -> None:
        self.run(0)
        before = len(self.sink.claimed)
        for number, cut in enumerate(self.sink.source.read_new(self.sink.positions)):
            self.sink._claim(cut)
            if number == 0 and ACTIVE in self.files:
                self.append(1)
                self.rotate()
                self.append(2)
            if number >= most:
                break
        for cut in self.sink.claimed[before:]:
            self.land(cut)

    # --- the model ---

    def land(self, cut: SliceData) -> None:
        self.landed += cut.data.splitlines(keepends=True)
        self.settled.add(cut.slice)

    def take_over(self) -> None:
        """What the next run does with a claim that has no result."""
        if self.claimed is None:
            return
        cut, self.claimed = self.claimed, None
        data = self.sink.read_again(cut.slice)
        if data == cut.data:
            self.land(cut)
            return
        lines = set(cut.data.splitlines(keepends=True))
        assert data is None or lines & self.gone, "other bytes than were claimed"
        assert lines & (self.gone | self.may_be_read_twice) or not self.whole(lines)
        self.sink.record_losses([Loss(cut.slice, "bytes_gone")])

    def whole(self, lines: set[bytes]) -> set[bytes]:
        return {line for line in lines if line in self.alive()}

    def new_record(self) -> bytes:
        self.records += 1
        return record(self.records)

    def complete(self) -> None:
        """The Collector goes on in the line it began."""
        file = self.files[ACTIVE]
        if file.half:
            file.content += record(self.records)
            file.half = b""

    def write(self, name: str) -> None:
        """Append what is new, as the Collector does; a shorter content cuts the file off."""
        path, file = self.folder / name, self.files[name]
        data = file.content + file.half
        size = path.stat().st_size if path.exists() else 0
        with path.open("r+b" if path.exists() else "wb") as target:
            if size > len(data):
                target.truncate(len(data))
            else:
                target.seek(size)
                target.write(data[size:])

    def compressed(self, name: str, ending: str) -> bytes:
        data = (self.folder / name).read_bytes()
        return gzip.compress(data) if ending == ".gz" else zstandard.compress(data)

    def others(self, file: File) -> list[File]:
        return [other for other in self.files.values() if other is not file]

    def rotated(self) -> list[str]:
        return sorted(set(self.files) - {ACTIVE})

    def pick(self, choice: int) -> str:
        names = self.rotated()
        return names[choice % len(names)]

    def alive(self) -> set[bytes]:
        return {line for file in self.files.values() for line in file.places()}

    def destroy(self, file: File) -> None:
        """The file is not among `files` any more: what no other one holds is gone."""
        if not file.content:
            return
        alive, read = self.alive(), set(self.landed)
        lost = {
            line: place
            for line, place in file.places().items()
            if line not in alive and line not in read
        }
        self.gone |= set(lost)
        # A copy that was made of its beginning cannot be told from another file any more.
        for other in self.files.values():
            if other.content and other.partition == file.partition:
                self.may_be_read_twice |= set(other.places())
        seen = {line: place for line, place in lost.items() if line in self.seen}
        if seen:
            self.destroyed.append(Destroyed(file.partition, seen))

    def settle(self) -> None:
        for path in self.folder.iterdir():
            self.sink.age(path, 600)  # whoever wrote half a record has gone
        for _ in range(60):
            self.run(1000)
            if self.sink.waiting == 0:
                break
        assert self.sink.waiting == 0
        times = {line: self.landed.count(line) for line in set(self.landed)}
        for line in self.alive() - self.gone:
            assert times.get(line, 0) >= 1, f"never read: {line!r}"
        for line, count in times.items():
            assert count == 1 or line in self.may_be_read_twice or b"\n" not in line, line
        for destroyed in self.destroyed:
            for line, (start, end) in destroyed.places.items():
                assert line in times or self.is_recorded(destroyed.partition, start, end), line
        if not self.gone and not self.may_be_read_twice:
            assert not self.unexplained()

    def is_recorded(self, partition: str, start: int, end: int) -> bool:
        ranges = sorted(
            (loss.slice.start, loss.slice.end)
            for loss in self.sink.lost
            if loss.slice.partition == partition
        )
        for low, high in ranges:
            if low <= start < high:
                start = high
        return start >= end

    def unexplained(self) -> list[Loss]:
        """Losses longer than half a record, where nothing was destroyed but half an archive."""
        return [
            loss
            for loss in self.sink.lost
            if loss.slice.end - loss.slice.start > 10 and loss.reason != "archive_truncated"
        ]

    @invariant()
    def no_record_is_claimed_twice(self) -> None:
        starts = [
            (cut.slice.partition, cut.slice.epoch, cut.slice.start) for cut in self.sink.claimed
        ]
        assert len(starts) == len(set(starts))


TestSink = SinkMachine.TestCase
TestSink.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    # Shrinking takes minutes: the steps of a failure are printed as they were.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
