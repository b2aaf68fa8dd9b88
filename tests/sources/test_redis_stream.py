"""Redis streams: every entry is in exactly one slice or recorded as lost, and the group shows it.

All of it against a real server. `Platform` writes as a platform does, and keeps a ledger.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services.streams import Redis, running_redis

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources.base import Loss, Position, Slice, SliceData
from telemetry_pipeline.sources.redis_entries import id_of, offset_of
from telemetry_pipeline.sources.redis_stream import RedisStreamSource

pytestmark = pytest.mark.needs("redis-server")

KEY = b"k" * 32
ACME = "product-telemetry:acme:events"
GROUP = "telemetry-pipeline"


@dataclass
class Platform:
    """A server with streams, and a ledger that remembers what was claimed, lost and seen."""

    server: Redis
    client: redis.Redis
    slice_bytes: int = 2**20
    slice_entries: int = 20_000
    group: str = GROUP
    positions: dict[tuple[str, int], Position] = field(default_factory=dict)
    claimed: list[SliceData] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
    added: int = 0

    def source(self, url: str | None = None) -> RedisStreamSource:
        return RedisStreamSource(
            "events",
            url or self.server.url,
            prefix="product-telemetry",
            group=self.group,
            partition_key=KEY,
            slice_bytes=self.slice_bytes,
            slice_entries=self.slice_entries,
        )

    def add(
        self, entries: int = 1, stream: str | bytes = ACME, *, first: int | None = None
    ) -> None:
        """Entries that are numbered through; with ids <first>-0, <first + 1>-0, … if given."""
        for index in range(entries):
            self.added += 1
            entry = "*" if first is None else f"{first + index}-0"
            self.client.xadd(stream, {"batch": json.dumps({"n": self.added})}, id=entry)

    def run(self, *, acknowledges: bool = True, slices: int | None = None) -> list[int]:
        """What the loader does in one run; returns the numbers of the entries read.

        `slices`: how many it lands before it dies.
        """
        with closing(self.source()) as source:
            before = dict(self.positions)
            for key, end in source.reach(before).items():
                self._know(key, seen_end=end)
            for loss in source.losses(before):
                self.lost.append(loss)
                key = (loss.slice.partition, loss.slice.epoch)
                known = self.positions.get(key, Position(0, ""))
                assert loss.slice.end > known.lost_end, "or it would be recorded for ever"
                self._know(key, lost_end=loss.slice.end)
            new = []
            for cut in source.read_new(dict(self.positions)):
                new.append(cut)
                self._claim(cut)
                if acknowledges:
                    source.acknowledge(cut.slice, {})
                if len(new) == slices:
                    break
        return [number for cut in new for number in numbers(cut.data)]

    def waiting(self) -> int:
        with closing(self.source()) as source:
            return source.waiting(self.positions)

    def losses(self) -> list[tuple[int, int, str]]:
        """(epoch, …) of what is recorded: (milliseconds of its first id, of its end, reason)."""
        return [
            (id_of(loss.slice.start)[0], id_of(loss.slice.end - 1)[0], loss.reason)
            for loss in self.lost
        ]

    def group_state(self, stream: str | bytes = ACME) -> dict[str, object]:
        (state,) = [
            group
            for group in self.client.xinfo_groups(stream)
            if group["name"] == self.group.encode()
        ]
        return {key: state[key] for key in ("last-delivered-id", "entries-read", "lag", "pending")}

    def _claim(self, cut: SliceData) -> None:
        key = (cut.slice.partition, cut.slice.epoch)
        assert cut.slice.start == self.positions.get(key, Position(0, "")).end
        assert cut.slice.end > cut.slice.start
        self._know(key, end=cut.slice.end, tail_sha256=cut.tail_sha256)
        self.claimed.append(cut)

    def _know(self, key: tuple[str, int], **more: int | str) -> None:
        known = self.positions.get(key, Position(0, ""))
        self.positions[key] = Position(**(vars(known) | more))


def numbers(data: bytes) -> list[int]:
    return [json.loads(line)["batch"]["n"] for line in data.splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def platform(server: Redis) -> Iterator[Platform]:
    with closing(redis.Redis(port=server.port)) as client:
        client.flushall()
        yield Platform(server, client)


# -- reading ---------------------------------------------------------------------------------


def test_an_empty_server_has_nothing_new(platform: Platform) -> None:
    assert platform.waiting() == 0
    assert platform.run() == []


def test_what_was_read_is_not_read_again(platform: Platform) -> None:
    platform.add(10)
    assert platform.waiting() == 10
    assert platform.run() == list(range(1, 11))
    platform.add(2)

    assert platform.waiting() == 2
    assert platform.run() == [11, 12]
    assert platform.run() == []
    assert (platform.waiting(), platform.lost) == (0, [])


def test_only_streams_of_the_prefix_are_read(platform: Platform) -> None:
    for other in ("product-telemetry:dlq", "product-telemetry:acme:eventsx", "x:acme:events"):
        platform.add(1, other)
    platform.client.set("product-telemetry:text:events", "no stream")
    platform.add(1)

    assert platform.run() == [4]


@pytest.mark.parametrize(
    ("stream", "organisation"),
    [
        (b"product-telemetry:anonymous:events", ""),
        (b"product-telemetry::events", ""),
        (b"product-telemetry:a:b:events", "a:b"),
        (b"product-telemetry:*?[x]\\:events", "*?[x]\\"),
        ('product-telemetry:ü "\n\r:events'.encode(), 'ü "\n\r'),
    ],
)
def test_odd_names_are_organisations(platform: Platform, stream: bytes, organisation: str) -> None:
    platform.add(1, stream)

    assert platform.run() == [1]
    (cut,) = platform.claimed
    assert json.loads(cut.data)["organisation"] == organisation
    assert platform.group_state(stream)["lag"] == 0


def test_a_name_that_is_no_text_gives_undecodable_lines(platform: Platform) -> None:
    stream = b"product-telemetry:\xff\xfe:events"
    platform.client.xadd(stream, {"batch": "{}"})
    with closing(platform.source()) as source:
        (cut,) = source.read_new({})
        source.acknowledge(cut.slice, {})

    assert json.loads(cut.data) == {"organisation": "", "undecodable": "{}"}
    assert platform.group_state(stream)["lag"] == 0


def test_a_partition_does_not_reveal_the_organisation(platform: Platform) -> None:
    platform.add(1)
    platform.add(1, "product-telemetry:other:events")
    platform.run()

    partitions = {cut.slice.partition for cut in platform.claimed}
    assert len(partitions) == 2 and all(len(name) == 32 for name in partitions)
    with closing(platform.source()) as source:
        source._partition_key = b"another key"
        assert not partitions & set(source._discover())


def test_entries_come_in_order_in_slices_of_so_many_entries(platform: Platform) -> None:
    platform.slice_entries = 7
    platform.add(50)

    assert platform.run() == list(range(1, 51))
    assert [len(numbers(cut.data)) for cut in platform.claimed] == [7] * 7 + [1]
    assert platform.group_state()["entries-read"] == 50


def test_slices_hold_so_many_bytes_and_an_entry_that_is_larger_is_one_slice(
    platform: Platform,
) -> None:
    platform.slice_bytes = 300
    platform.add(20)
    platform.client.xadd(ACME, {"batch": json.dumps({"n": 21, "long": "x" * 1000})})
    platform.added += 1
    platform.add(20)

    assert platform.run() == list(range(1, 42))
    sizes = [len(cut.data) for cut in platform.claimed]
    assert sorted(sizes)[-2] <= 300 < sizes[[numbers(c.data) for c in platform.claimed].index([21])]


def test_a_run_reads_what_was_there_when_it_began(platform: Platform) -> None:
    platform.slice_entries = 1
    platform.add(3)
    with closing(platform.source()) as source:
        slices = source.read_new({})
        read = numbers(next(slices).data)
        platform.add(5)
        read += [number for cut in slices for number in numbers(cut.data)]

    assert read == [1, 2, 3], "a stream that never rests must not keep others waiting"


def test_the_stream_with_the_oldest_entry_comes_first(platform: Platform) -> None:
    streams = [f"product-telemetry:{name}:events" for name in ("c", "a", "b")]
    for age, stream in enumerate(streams):
        platform.add(2, stream, first=1000 + age)

    assert platform.run() == [1, 2, 3, 4, 5, 6]


def test_entries_of_one_millisecond_are_told_apart(platform: Platform) -> None:
    platform.slice_entries = 1
    for sequence in range(3):
        platform.client.xadd(ACME, {"batch": json.dumps({"n": sequence})}, id=f"5-{sequence}")

    assert platform.run() == [0, 1, 2]
    assert [cut.slice.end for cut in platform.claimed] == [offset_of((5, n)) + 1 for n in range(3)]


def test_hostile_entries_are_one_line_each(platform: Platform) -> None:
    entries = [
        {"batch": b'1}, "organisation": "x"'},
        {"batch": b'{}}\n{"organisation": "x", "batch": {}'},
        {"batch": b"\xff\n"},
        {"body": b"\n"},
        {"batch": b'{"n":\n1}'},
    ]
    for entry in entries:
        platform.client.xadd(ACME, entry)
    platform.client.execute_command("XADD", ACME, "*", "batch", "{}", "batch", "{}")
    with closing(platform.source()) as source:
        (cut,) = source.read_new({})

    lines = [json.loads(line) for line in cut.data.splitlines()]
    assert len(lines) == 6 and {line["organisation"] for line in lines} == {"acme"}
    assert ["batch" in line for line in lines] == [False, False, False, False, True, False]


# -- reading again ---------------------------------------------------------------------------


def again(platform: Platform, wanted: Slice) -> bytes | None:
    with closing(platform.source()) as source:
        return source.read_again(wanted, platform.positions)


def test_a_slice_is_read_again_to_the_byte(platform: Platform) -> None:
    platform.slice_entries = 600
    platform.add(1500)
    platform.run()
    platform.add(10)

    assert len(platform.claimed) == 3
    assert [again(platform, cut.slice) for cut in platform.claimed] == [
        cut.data for cut in platform.claimed
    ]


def test_entries_that_went_away_change_the_bytes_and_a_stream_that_did_has_none(
    platform: Platform,
) -> None:
    platform.add(5, first=1)
    platform.run()
    (cut,) = platform.claimed
    platform.client.xdel(ACME, "3-0")
    assert numbers(again(platform, cut.slice) or b"") == [1, 2, 4, 5]
    platform.client.xtrim(ACME, maxlen=0, approximate=False)
    assert again(platform, cut.slice) is None
    platform.client.delete(ACME)
    assert again(platform, cut.slice) is None


# -- what is lost ----------------------------------------------------------------------------


def test_what_was_trimmed_after_it_was_read_is_no_loss(platform: Platform) -> None:
    platform.add(10, first=1)
    platform.run()
    platform.add(5, first=11)
    platform.client.xtrim(ACME, minid="11-0", approximate=False)

    assert platform.run() == [11, 12, 13, 14, 15]
    platform.client.xtrim(ACME, maxlen=0, approximate=False)
    platform.add(1, first=20)
    assert platform.run() == [16]
    assert platform.lost == []


@pytest.mark.parametrize("how", ["MAXLEN", "MINID"])
def test_unread_entries_that_were_trimmed_are_recorded(platform: Platform, how: str) -> None:
    platform.add(10, first=1)
    platform.run()
    platform.add(10, first=11)
    platform.client.execute_command("XTRIM", ACME, how, "=", {"MAXLEN": 5, "MINID": 16}[how])

    assert platform.waiting() > 0
    assert platform.run() == [16, 17, 18, 19, 20]
    assert platform.losses() == [(10, 15, "trimmed_in_stream")]
    assert platform.run() == []
    assert platform.waiting() == 0 and len(platform.lost) == 1
    assert platform.group_state()["lag"] == 0


def test_all_unread_entries_trimmed_is_a_loss_although_nothing_is_there(
    platform: Platform,
) -> None:
    platform.add(3, first=1)
    platform.run()
    platform.add(4, first=4)
    platform.client.xtrim(ACME, maxlen=0, approximate=False)

    assert platform.waiting() == 1, "a run must come and record it"
    assert platform.run() == []
    assert platform.losses() == [(3, 7, "trimmed_in_stream")]
    assert platform.waiting() == 0


def test_an_unread_entry_that_was_deleted_is_recorded_and_its_neighbours_are_read(
    platform: Platform,
) -> None:
    platform.add(3, first=1)
    platform.run()
    platform.add(7, first=4)
    platform.client.xdel(ACME, "6-0", "8-0")

    assert platform.run() == [4, 5, 7, 9, 10]
    assert platform.losses() == [(3, 8, "trimmed_in_stream")]
    assert platform.run() == []
    assert platform.waiting() == 0


def test_a_group_made_anew_does_not_hide_what_is_trimmed_after_it(platform: Platform) -> None:
    platform.add(2, first=1)
    platform.run()
    platform.client.xgroup_destroy(ACME, GROUP)
    platform.client.xgroup_create(ACME, GROUP, id="2-0")  # without a count of entries
    platform.add(2, first=3)
    platform.client.xtrim(ACME, maxlen=0, approximate=False)
    assert platform.group_state()["lag"] == 0, "what Redis says of an emptied stream"

    assert platform.waiting() == 1
    assert platform.run() == []
    assert platform.losses() == [(2, 4, "trimmed_in_stream")]


def test_what_was_removed_before_the_first_run_is_nobodys_loss(platform: Platform) -> None:
    platform.add(20, first=1)
    platform.client.xdel(ACME, "18-0")
    platform.client.xtrim(ACME, minid="11-0", approximate=False)

    assert platform.run() == [11, 12, 13, 14, 15, 16, 17, 19, 20]
    assert platform.lost == []
    assert platform.group_state()["lag"] == 0


def test_what_was_trimmed_from_a_new_stream_is_a_loss(platform: Platform) -> None:
    platform.add(1, "product-telemetry:known:events")
    platform.run()
    platform.add(20, first=1)
    platform.client.xtrim(ACME, minid="11-0", approximate=False)

    assert platform.run() == list(range(12, 22))
    assert platform.losses() == [(0, 10, "trimmed_in_stream")]


def test_trimming_is_told_from_reading_though_no_acknowledgement_arrived(
    platform: Platform,
) -> None:
    platform.slice_entries = 4
    platform.add(12, first=1)
    platform.run(acknowledges=False)
    platform.client.xtrim(ACME, minid="11-0", approximate=False)
    platform.add(3, first=13)

    assert platform.run() == [13, 14, 15]
    assert platform.lost == []


def test_what_cannot_be_told_counts_as_lost(platform: Platform) -> None:
    """No acknowledgement, and every entry read is gone: the ledger counts no entries."""
    platform.add(12, first=1)
    platform.run(acknowledges=False)
    platform.add(3, first=13)
    platform.client.xtrim(ACME, minid="14-0", approximate=False)

    assert platform.run() == [14, 15]
    assert platform.losses() == [(12, 13, "trimmed_in_stream")]


def test_entries_trimmed_while_a_run_reads_are_recorded_by_the_next(platform: Platform) -> None:
    platform.slice_entries = 16
    platform.add(100, first=1)
    with closing(platform.source()) as source:
        slices = source.read_new({})
        for _ in range(2):
            cut = next(slices)
            platform._claim(cut)
            source.acknowledge(cut.slice, {})
        platform.client.xtrim(ACME, minid="81-0", approximate=False)
        for cut in slices:
            platform._claim(cut)
            source.acknowledge(cut.slice, {})
    read = [number for cut in platform.claimed for number in numbers(cut.data)]
    assert read == list(range(1, len(read) + 1)) and len(read) < 81, "no gap is passed over"

    assert platform.waiting() > 0
    assert platform.run() == list(range(81, 101))
    assert platform.losses() == [(len(read), 80, "trimmed_in_stream")]


def test_entries_deleted_while_a_run_reads_are_recorded_by_the_next(platform: Platform) -> None:
    platform.slice_entries = 16
    platform.add(100, first=1)
    with closing(platform.source()) as source:
        slices = source.read_new({})
        platform._claim(next(slices))
        platform.client.xdel(ACME, "90-0")
        for cut in slices:
            platform._claim(cut)
    read = [number for cut in platform.claimed for number in numbers(cut.data)]
    assert len(read) < 90

    assert read + platform.run() == [*range(1, 90), *range(91, 101)]
    assert [reason for *_, reason in platform.losses()] == ["trimmed_in_stream"]


def test_a_stream_that_vanished_unread_is_a_loss_and_one_that_was_read_is_none(
    platform: Platform,
) -> None:
    read = "product-telemetry:read:events"
    platform.slice_entries = 1
    platform.add(1, read, first=1)
    platform.run()
    platform.add(3, first=1)
    platform.run(slices=1)  # it saw three entries, landed one, and died
    platform.client.delete(ACME, read)

    assert platform.waiting() == 1
    assert platform.run() == []
    assert platform.losses() == [(1, 3, "stream_gone")]
    assert platform.waiting() == 0


# -- one stream or another --------------------------------------------------------------------


def test_a_stream_made_again_with_smaller_ids_is_a_new_epoch(platform: Platform) -> None:
    platform.add(5, first=100)
    platform.run()
    platform.client.delete(ACME)
    platform.add(3, first=1)

    assert platform.waiting() > 0
    assert platform.run() == [6, 7, 8]
    assert [cut.slice.epoch for cut in platform.claimed] == [0, 1]
    assert [reason for *_, reason in platform.losses()] == ["stream_recreated"]
    platform.add(1, first=4)
    assert platform.run() == [9]
    assert platform.waiting() == 0
    assert platform.group_state()["lag"] == 0


def test_a_stream_made_again_that_has_outgrown_the_old_one_is_told_by_its_entries(
    platform: Platform,
) -> None:
    platform.add(3, first=10)
    platform.run()
    platform.client.delete(ACME)
    platform.add(4, first=5)
    platform.add(4, first=20)

    assert platform.run() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert platform.claimed[-1].slice.epoch == 1


def test_a_stream_made_again_with_later_ids_goes_on(platform: Platform) -> None:
    platform.add(3)
    platform.run()
    platform.client.delete(ACME)
    time.sleep(0.002)
    platform.add(2)

    assert platform.run() == [4, 5]
    assert {cut.slice.epoch for cut in platform.claimed} == {0}
    assert platform.lost == []


def test_what_was_seen_in_a_stream_that_was_made_again_with_later_ids_is_a_loss(
    platform: Platform,
) -> None:
    platform.slice_entries = 3
    platform.add(6, first=1)
    platform.run(slices=1)  # saw six, landed three
    platform.client.delete(ACME)
    platform.add(2, first=20)

    assert platform.run() == [7, 8]
    assert platform.losses() == [(3, 19, "trimmed_in_stream")]


def test_a_stream_that_is_made_again_while_a_run_reads_it_is_left_to_the_next(
    platform: Platform,
) -> None:
    platform.slice_entries = 16
    platform.add(80, first=1)
    with closing(platform.source()) as source:
        for key, end in source.reach({}).items():
            platform._know(key, seen_end=end)
        slices = source.read_new({})
        platform._claim(next(slices))
        platform.client.delete(ACME)
        platform.add(30, first=100)
        for cut in slices:
            platform._claim(cut)
    read = [number for cut in platform.claimed for number in numbers(cut.data)]
    assert read == list(range(1, len(read) + 1)), "no entry of the new stream"

    assert platform.run() == list(range(81, 111))
    assert platform.losses() == [(len(read), 99, "trimmed_in_stream")]


def test_a_stream_restored_from_an_older_state_is_read_from_its_start(platform: Platform) -> None:
    platform.add(3, first=1)
    platform.run()
    backup = platform.client.dump(ACME)
    platform.add(3, first=4)
    platform.run()
    platform.client.restore(ACME, 0, backup, replace=True)
    platform.add(1, first=5)

    # Entry 5-0 stands where another was read: only the whole stream is sure to hold it.
    assert platform.run() == [1, 2, 3, 7]
    assert platform.claimed[-1].slice.epoch == 1
    assert platform.run() == [] and platform.waiting() == 0
    assert [reason for *_, reason in platform.losses()] == ["stream_recreated"]


def test_entries_that_were_seen_and_that_the_server_forgot_are_a_loss(platform: Platform) -> None:
    platform.slice_entries = 3
    platform.add(3, first=1)
    backup = platform.client.dump(ACME)
    platform.add(3, first=4)
    platform.run(slices=1)  # saw six, landed three
    platform.client.restore(ACME, 0, backup, replace=True)

    assert platform.run() == []
    assert platform.losses() == [(3, 6, "stream_rolled_back")]
    platform.add(1, first=5)
    assert platform.run() == [7], "a range recorded as lost hides no entry"


def test_a_server_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path, durable=True) as server,
        closing(redis.Redis(port=server.port)) as client,
    ):
        platform = Platform(server, client, slice_entries=10)
        platform.add(25)
        assert platform.run(slices=1) == list(range(1, 11))
        server.kill()
        with pytest.raises(TelemetryError, match=r"Redis at 127\.0\.0\.1"):
            platform.run()
        server.start()

        assert platform.run() == list(range(11, 26))
        assert {cut.slice.epoch for cut in platform.claimed} == {0}
        assert (platform.lost, platform.waiting()) == ([], 0)
        assert again(platform, platform.claimed[0].slice) == platform.claimed[0].data


# -- whatever happens, in any order ------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 9)),
        st.tuples(st.just("run"), st.integers(1, 3)),
        st.tuples(st.just("trim"), st.integers(0, 12)),
        st.tuples(st.just("delete"), st.integers(0, 12)),
        st.tuples(st.just("die unacknowledged"), st.integers(1, 2)),
        st.tuples(st.just("destroy the group"), st.just(0)),
        st.tuples(st.just("others read in the group"), st.integers(1, 9)),
    ),
    min_size=3,
    max_size=14,
)


@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(STEPS)
def test_every_entry_is_read_once_or_lies_in_a_recorded_loss(
    server: Redis, steps: list[tuple[str, int]]
) -> None:
    with closing(redis.Redis(port=server.port)) as client:
        client.flushall()
        platform = Platform(server, client, slice_entries=4)
        platform.add(1, "product-telemetry:other:events")
        platform.run()  # the source is no stranger to the server
        read = platform.added
        seen: list[int] = []
        for what, number in steps:
            seen += _step(platform, what, number, first=platform.added + 1)
        seen += platform.run() + platform.run()  # what a first run finds damaged, a second reads

        assert len(seen) == len(set(seen)), "an entry was read twice"
        lost = [range(loss.slice.start, loss.slice.end) for loss in platform.lost]
        for number in range(read + 1, platform.added + 1):
            in_a_loss = any(offset_of((number, 0)) in span for span in lost)
            assert number in seen or in_a_loss, f"entry {number} is nowhere"
        if not {"die unacknowledged", "destroy the group", "others read in the group"} & {
            what for what, _ in steps
        }:
            is_complete = len(seen) == platform.added - read
            assert not (lost and is_complete), "a false alarm"
        assert platform.waiting() == 0


def _step(platform: Platform, what: str, number: int, *, first: int) -> list[int]:
    client = platform.client
    there = [entry for entry, _ in client.xrange(ACME)]
    match what:
        case "add":
            platform.add(number, first=first)
        case "run":
            return platform.run(slices=number)
        case "die unacknowledged":
            return platform.run(slices=number, acknowledges=False)
        case "trim":
            client.xtrim(ACME, maxlen=max(0, len(there) - number), approximate=False)
        case "delete" if there:
            client.xdel(ACME, there[number % len(there)])
        case "destroy the group" if client.exists(ACME):
            client.xgroup_destroy(ACME, GROUP)
        case "others read in the group" if client.exists(ACME):
            if not client.xinfo_groups(ACME):
                client.xgroup_create(ACME, GROUP, id="0")
            client.xreadgroup(GROUP, "other", {ACME: ">"}, count=number)
    return []


# -- ids ---------------------------------------------------------------------------------------


def test_ids_that_do_not_fit_are_recorded_as_lost_and_stop_nothing(platform: Platform) -> None:
    platform.add(1, first=1)
    for number, entry in enumerate(["1-4194303", "1-9999999999"]):
        platform.client.xadd(ACME, {"batch": json.dumps({"n": 100 + number})}, id=entry)
    platform.add(1, first=2)

    assert platform.run() == [1], "what lies before them is read"
    assert platform.waiting() > 0
    assert platform.run() == [2]
    assert platform.losses() == [(1, 1, "id_out_of_range")]
    assert platform.run() == []
    assert platform.waiting() == 0
    assert numbers(again(platform, platform.claimed[-1].slice) or b"") == [2]


def test_an_id_beyond_all_that_fit_ends_its_stream_and_no_other(platform: Platform) -> None:
    platform.client.xadd(ACME, {"batch": '{"n": 0}'}, id=f"{2**64 - 1}-5")
    platform.add(2, "product-telemetry:other:events")

    assert platform.run() == [1, 2]
    assert platform.run() == []
    assert [loss.reason for loss in platform.lost] == ["id_out_of_range"]
    assert platform.waiting() == 0


# -- the consumer group -----------------------------------------------------------------------


def test_the_group_shows_what_the_ledger_has(platform: Platform) -> None:
    platform.slice_entries = 4
    platform.add(10, first=1)
    platform.run(slices=1)
    assert platform.group_state() == {
        "last-delivered-id": b"4-0",
        "entries-read": 4,
        "lag": 6,
        "pending": 0,
    }
    platform.run()
    assert platform.group_state() == {
        "last-delivered-id": b"10-0",
        "entries-read": 10,
        "lag": 0,
        "pending": 0,
    }


def test_a_worker_killed_between_result_and_acknowledgement_is_made_up_for(
    platform: Platform,
) -> None:
    platform.slice_entries = 4
    platform.add(10, first=1)
    platform.run(acknowledges=False, slices=1)
    assert platform.group_state()["last-delivered-id"] == b"0-0"

    assert platform.run() == [5, 6, 7, 8, 9, 10]
    assert platform.group_state()["lag"] == 0
    assert platform.group_state()["entries-read"] == 10


def test_acknowledging_again_or_late_changes_nothing(platform: Platform) -> None:
    platform.slice_entries = 4
    platform.add(10, first=1)
    platform.run()
    before = platform.group_state()
    with closing(platform.source()) as source:
        for cut in reversed(platform.claimed):
            source.acknowledge(cut.slice, {})

    assert platform.group_state() == before


def test_what_a_dead_consumer_left_pending_is_acknowledged(platform: Platform) -> None:
    platform.add(2500, first=1)
    platform.client.xgroup_create(ACME, GROUP, id="0")
    platform.client.xreadgroup(GROUP, "dead", {ACME: ">"}, count=1200)
    assert platform.group_state()["pending"] == 1200

    assert platform.run() == list(range(1, 2501)), "a group that is ahead hides nothing"
    assert platform.group_state()["pending"] == 0
    assert platform.group_state()["lag"] == 0


def test_what_lies_after_the_slice_stays_pending(platform: Platform) -> None:
    platform.slice_entries = 4
    platform.add(10, first=1)
    platform.client.xgroup_create(ACME, GROUP, id="0")
    platform.client.xreadgroup(GROUP, "dead", {ACME: ">"}, count=7)
    platform.run(slices=1)

    pending = platform.client.xpending_range(ACME, GROUP, "-", "+", 10)
    assert [item["message_id"] for item in pending] == [b"5-0", b"6-0", b"7-0"]


def test_a_group_that_was_destroyed_is_made_again_where_the_ledger_is(platform: Platform) -> None:
    platform.add(5, first=1)
    platform.run()
    platform.client.xgroup_destroy(ACME, GROUP)

    assert platform.run() == []
    assert platform.group_state()["last-delivered-id"] == b"5-0"
    assert platform.group_state()["lag"] == 0
    platform.add(1, first=6)
    assert platform.run() == [6]


def test_a_stream_that_is_gone_by_the_time_is_acknowledged_without_a_word(
    platform: Platform,
) -> None:
    platform.add(3)
    with closing(platform.source()) as source:
        (cut,) = source.read_new({})
        platform.client.delete(ACME)
        source.acknowledge(cut.slice, {})

    assert platform.client.exists(ACME) == 0


def test_another_group_is_left_alone(platform: Platform) -> None:
    platform.add(3)
    platform.client.xgroup_create(ACME, "celery", id="0")
    platform.client.xreadgroup("celery", "worker", {ACME: ">"}, count=2)
    before = [g for g in platform.client.xinfo_groups(ACME) if g["name"] == b"celery"]
    platform.run()

    assert [g for g in platform.client.xinfo_groups(ACME) if g["name"] == b"celery"] == before


def test_two_readers_see_the_same_slices(platform: Platform) -> None:
    platform.slice_entries = 3
    platform.add(10)
    with closing(platform.source()) as one, closing(platform.source()) as other:
        cuts = list(zip(one.read_new({}), other.read_new({}), strict=True))
        for mine, yours in cuts:
            assert mine == yours
            one.acknowledge(mine.slice, {})
            other.acknowledge(yours.slice, {})

    assert len(cuts) == 4
    assert platform.group_state()["lag"] == 0


def test_rejected_records_leave_a_notice_without_a_payload(platform: Platform) -> None:
    platform.add(3, first=1)
    with closing(platform.source()) as source:
        (cut,) = source.read_new({})
        source.acknowledge(cut.slice, {"unknown_event": 2, "undecodable": 1})

    notices = [fields for _, fields in platform.client.xrange("product-telemetry:dlq")]
    assert notices[0] == {
        b"partition": cut.slice.partition.encode(),
        b"first_id": b"0-0",
        b"last_id": b"3-0",
        b"batch_id": str(cut.slice.batch_id).encode(),
        b"reason": b"unknown_event",
        b"records": b"2",
    }
    assert [notice[b"reason"] for notice in notices] == [b"unknown_event", b"undecodable"]


def test_notices_are_capped(platform: Platform) -> None:
    with platform.client.pipeline() as pipeline:
        for number in range(12_000):
            pipeline.xadd("product-telemetry:dlq", {"n": number})
        pipeline.execute()
    with closing(platform.source()) as source:
        source.acknowledge(Slice("events", "gone", 0, 0, 5), {"undecodable": 1})

    assert 10_000 <= platform.client.xlen("product-telemetry:dlq") <= 10_100


# -- the server --------------------------------------------------------------------------------


def test_a_server_that_is_down_is_one_line_without_the_password(platform: Platform) -> None:
    with closing(platform.source("redis://me:s3cret@127.0.0.1:1/3")) as source:
        for ask in (
            source.waiting,
            source.reach,
            source.losses,
            lambda p: list(source.read_new(p)),
        ):
            with pytest.raises(TelemetryError) as caught:
                ask({})
            text = str(caught.value)
            assert text.startswith("source events: Redis at 127.0.0.1:1/3: ")
            assert "s3cret" not in text and "\n" not in text


def test_a_wrong_password_is_said_and_not_repeated(platform: Platform) -> None:
    url = platform.server.url.replace("redis://", "redis://me:s3cret@")
    with closing(platform.source(url)) as source, pytest.raises(TelemetryError) as caught:
        source.waiting({})

    assert "invalid username-password pair" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("command", ["scan", "xinfo|stream", "xinfo|groups", "xread", "xrange"])
def test_a_missing_permission_is_said_without_a_streams_name(
    platform: Platform, command: str
) -> None:
    platform.add(1)
    platform.client.acl_setuser(
        "narrow", enabled=True, nopass=True, keys=["*"], commands=["+@all", f"-{command}"]
    )
    url = platform.server.url.replace("redis://", "redis://narrow:x@")
    with closing(platform.source(url)) as source, pytest.raises(TelemetryError) as caught:
        list(source.read_new({}))

    assert "permission" in str(caught.value) and "acme" not in str(caught.value)


def test_options_in_the_address_do_not_change_what_is_read(platform: Platform) -> None:
    platform.add(1)
    with closing(platform.source(platform.server.url + "?decode_responses=true&protocol=3")) as it:
        (cut,) = it.read_new({})

    assert numbers(cut.data) == [1]


@pytest.mark.parametrize("url", ["", "127.0.0.1:6379", "http://127.0.0.1", "redis://h:port/0"])
def test_an_address_that_is_none_is_refused(platform: Platform, url: str) -> None:
    with pytest.raises(ValueError):
        RedisStreamSource("events", url, prefix="p", group="g", partition_key=KEY)


# -- many streams ------------------------------------------------------------------------------


def test_a_tick_over_a_thousand_idle_streams_is_cheap_and_brings_no_entries(
    platform: Platform,
) -> None:
    body = json.dumps({"n": 0, "text": "x" * 10_000})
    with platform.client.pipeline(transaction=False) as pipeline:
        for number in range(1000):
            pipeline.xadd(f"product-telemetry:org{number}:events", {"batch": body})
        pipeline.execute()
    assert len(platform.run()) == 1000
    with closing(platform.source()) as source:
        source.waiting(platform.positions)  # connects
        sent = platform.client.info("stats")["total_net_output_bytes"]
        began = time.perf_counter()
        assert source.waiting(platform.positions) == 0
        took = time.perf_counter() - began
        sent = platform.client.info("stats")["total_net_output_bytes"] - sent
        platform.add(1, "product-telemetry:org7:events")
        assert source.waiting(platform.positions) == 1

    print(f"1,000 idle streams: {took * 1000:.0f} ms, {sent} bytes")
    assert sent < 500_000, "10 MB of entries lie there"
    assert took < 1
    assert len(platform.run()) == 1
