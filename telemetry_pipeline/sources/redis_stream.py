"""Redis streams `<prefix>:<organisation or anonymous>:events`, whose entries hold event batches.

A stream is one partition, named by a keyed hash: the ledger does not reveal organisations. Slices
are ranges of entry ids, and the ledger alone says what was read. The consumer group serves those
who watch the stream (XINFO GROUPS); the one thing taken from it is a count of entries, which tells
trimmed entries that were read from those that were not.

A stream continues an epoch as long as it can be the stream that the ledger knows: it has generated
the last id claimed, and that entry is there unless it was trimmed or deleted. A stream that was
deleted and made again with smaller ids, or restored from an older state, begins a new epoch.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.connection import ConnectionPool, parse_url
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.sources.base import Encoding, Loss, Position, Positions, Slice, SliceData
from telemetry_pipeline.sources.redis_entries import (
    EntryId,
    after,
    before,
    fits,
    format_id,
    id_of,
    last_id_of,
    line_of,
    offset_of,
    organisation_of,
    parse_id,
)

#: What one slice holds at most (an entry larger than that is a slice of its own).
SLICE_BYTES = 32 * 1024 * 1024
SLICE_ENTRIES = 20_000
#: A page aims at this size, judged by the largest entry of the page before, and doubles at most.
PAGE_BYTES = 4 * 1024 * 1024
FIRST_PAGE = 16
LARGEST_PAGE = 512
#: Keys of the database looked at in one request: some milliseconds of the server's time.
KEYS_AT_ONCE = 10_000
#: Streams asked about in one request: cheaply, and in a transaction that brings entries along.
STREAMS_AT_ONCE = 500
LOOKS_AT_ONCE = 20
#: `<prefix>:dlq` keeps about this many notices.
DLQ_ENTRIES = 10_000
PENDING_AT_ONCE = 1_000
SECONDS_TO_CONNECT = 5
SECONDS_TO_ANSWER = 30

#: What the server says of a group or stream that another process made or removed meanwhile.
GROUP_CHANGED = ("BUSYGROUP", "NOGROUP", "The XGROUP subcommand requires the key to exist")

NOWHERE = Position(0, "")


@dataclass(frozen=True)
class Group:
    """The consumer group: the last entry delivered, and how many were up to it; None: unknown."""

    last: EntryId
    read: int | None
    lag: int | None


@dataclass(frozen=True)
class Stream:
    """A stream at one moment, and where the ledger stands in it.

    `last`: the largest id it ever generated. `removed`: entries that were added and are gone.
    `deleted`: the largest id that XDEL removed (trimming does not count). `oldest` and `newest`
    are there. `holds_claimed` and `holds_seen`: whether the last entry claimed and the last one
    seen are there. `unread`: the first entry from `position.end` on that can still be read.
    """

    name: bytes
    partition: str
    epoch: int
    position: Position
    length: int
    added: int
    last: EntryId
    deleted: EntryId
    oldest: EntryId | None
    newest: EntryId | None
    group: Group | None
    holds_claimed: bool = False
    holds_seen: bool = False
    unread: EntryId | None = None

    @property
    def removed(self) -> int:
        return self.added - self.length

    @property
    def begins_at(self) -> int:
        """The offset before which nothing can be read any more."""
        return offset_of(self.oldest) if self.oldest else offset_of(self.last) + 1

    @property
    def accounted_to(self) -> int:
        return max(self.position.end, self.position.lost_end)

    @property
    def group_is_in_step(self) -> bool:
        """The group's last entry is the last one claimed."""
        group, end = self.group, self.position.end
        return group is not None and group.last == (id_of(end - 1) if end else (0, 0))

    @property
    def read_before(self) -> int | None:
        """How many entries were ever added before the position; None when it cannot be told."""
        if offset_of(self.last) < self.position.end:
            return self.added
        if self.deleted > (0, 0) and offset_of(self.deleted) >= self.position.end:
            return None
        if self.begins_at >= self.position.end:
            return self.removed
        return self.group.read if self.group and self.group_is_in_step else None


def continues(stream: Stream) -> bool:
    """Whether this can be the stream in which the ledger's position was reached."""
    if stream.position.end == 0:
        return True
    claimed = id_of(stream.position.end - 1)
    if stream.last < claimed:
        return False
    was_removed = stream.oldest is None or stream.oldest > claimed or stream.deleted >= claimed
    return was_removed or stream.holds_claimed


def losses_in(stream: Stream, *, is_history: bool) -> Iterator[tuple[int, int, str]]:
    """(start, end, reason) of what can never be read and is not in the ledger as lost.

    `is_history`: the source was never read before, so what went before belongs to somebody else.
    """
    start = stream.accounted_to
    seen_end = stream.position.seen_end
    if seen_end > start and _rolled_back(stream):
        yield start, seen_end, "stream_rolled_back"
        start = seen_end
    if not is_history and (removed_to := _unread_removed_to(stream)) > start:
        yield start, removed_to, "trimmed_in_stream"
        start = removed_to
    if stream.unread is not None and not fits(stream.unread):
        end = offset_of(stream.unread) + 1
        if end > start:
            yield start, end, "id_out_of_range"


def _rolled_back(stream: Stream) -> bool:
    """An entry that was seen there is gone though nobody removed it: the server lost it."""
    seen = id_of(stream.position.seen_end - 1)
    if stream.last < seen:
        return True
    was_removed = stream.oldest is None or stream.oldest > seen or stream.deleted >= seen
    return not (was_removed or stream.holds_seen)


def _unread_removed_to(stream: Stream) -> int:
    """Up to which offset entries were removed that nobody had read; 0 for none.

    Only XDEL leaves its largest id behind. After trimming, the number of entries removed is
    compared with the number read; where that is not known, entries count as lost.
    """
    deleted_to = offset_of(stream.deleted) + 1 if stream.deleted != (0, 0) else 0
    if deleted_to > stream.accounted_to:
        return max(deleted_to, stream.begins_at)
    if stream.accounted_to < stream.position.seen_end <= stream.begins_at:
        return stream.begins_at  # an entry that was seen and not read is gone
    if stream.removed == 0 or stream.begins_at <= stream.accounted_to:
        return 0
    group, end = stream.group, stream.accounted_to
    if group is None or group.read is None or stream.removed > group.read:
        return stream.begins_at
    # A group that is ahead of the ledger counts what others read, unless it came with a stream
    # from an older state: what was read there, an earlier epoch has.
    is_restored = stream.epoch > 0 and end == 0
    is_ahead = group.last > (id_of(end - 1) if end else (0, 0))
    return stream.begins_at if is_ahead and not is_restored else 0


class RedisStreamSource:
    """Reads every stream of one prefix; `partition_key` hashes their names."""

    encoding: Encoding = "product_telemetry_batch"
    unit = "entries"

    def __init__(
        self,
        name: str,
        url: str,
        *,
        prefix: str,
        group: str,
        partition_key: bytes,
        hashes_on_read: bool = True,
        slice_bytes: int = SLICE_BYTES,
        slice_entries: int = SLICE_ENTRIES,
    ) -> None:
        """Does not connect yet. Raises ValueError for a URL that is no Redis address."""
        self.name = name
        self.hashes_on_read = hashes_on_read
        self._prefix = prefix
        self._group = group
        self._partition_key = partition_key
        self._slice_bytes = slice_bytes
        self._slice_entries = slice_entries
        self._redis, self._address = _client(url)
        self._names: dict[str, bytes] = {}
        self._read_after: dict[Slice, int | None] = {}
        self._new_to_us: set[str] = set()

    def waiting(self, positions: Positions) -> int:
        """Entries no claim covers yet (an upper bound where the group is out of step), and one
        for each loss to be recorded."""
        streams = self._survey(positions)
        unread = sum(_unread_entries(stream) for stream in streams)
        return unread + len(self._losses(streams, positions))

    def read_new(self, positions: Positions) -> Iterator[SliceData]:
        """Slices of each stream in turn, the one with the oldest unread entry first.

        What was added after this began is left for the next time, so that no stream keeps others
        waiting. A stream that lost entries since `losses` was called is left, too.
        """
        streams = self._survey(positions)
        for stream in streams:
            self._create_group(stream)
            self._pass_over_lost(stream)
        unread = [(stream.unread, stream) for stream in streams if stream.unread]
        for _, stream in sorted(unread, key=lambda item: item[0]):
            is_history = not positions or stream.partition in self._new_to_us
            if not any(losses_in(stream, is_history=is_history)):
                yield from self._slices(stream)

    def read_again(self, wanted: Slice, positions: Positions) -> bytes | None:
        """The entries of the range that are there now; their hash tells whether any is missing."""
        name = self._name_of(wanted.partition)
        if name is None:
            return None
        organisation = organisation_of(name, self._prefix)
        lines = bytearray()
        cursor, last = id_of(wanted.start), id_of(wanted.end - 1)
        count = FIRST_PAGE
        while cursor <= last:
            with self._asking():
                page = self._page(self._redis.xrange(name, *_range(cursor, last), count=count))
            made = [line_of(organisation, fields) for entry, fields in page if fits(entry)]
            lines += b"".join(made)
            if len(page) < count:
                break
            cursor, count = after(page[-1][0]), _next_count(count, made)
        return bytes(lines) or None

    def reach(self, positions: Positions) -> dict[tuple[str, int], int]:
        """The newest entry of each stream that has unread ones."""
        return {
            (stream.partition, stream.epoch): offset_of(stream.newest) + 1
            for stream in self._survey(positions)
            if stream.newest and fits(stream.newest)
        }

    def losses(self, positions: Positions) -> list[Loss]:
        """Entries removed unread, entries with an id that has no offset, streams that are gone or
        began anew while entries were known to be unread."""
        streams = self._survey(positions)
        if not positions:
            self._new_to_us = {stream.partition for stream in streams}
        return self._losses(streams, positions)

    def acknowledge(self, settled: Slice, rejected: Mapping[str, int]) -> None:
        """Show the group that entries up to the slice's end are done, and put a notice into
        `<prefix>:dlq` for each reason. The group never goes back, and a repetition changes it no
        further; a notice may be repeated, or be missing after a crash."""
        read = self._read_after.pop(settled, None)
        name = self._name_of(settled.partition)
        if name is not None:
            self._advance_group(name, id_of(settled.end - 1), read)
        if not rejected:
            return
        with self._asking(), self._redis.pipeline(transaction=False) as pipeline:
            for reason, records in rejected.items():
                pipeline.xadd(
                    f"{self._prefix}:dlq",
                    {
                        "partition": settled.partition,
                        "first_id": format_id(id_of(settled.start)),
                        "last_id": format_id(id_of(settled.end - 1)),
                        "batch_id": settled.batch_id,
                        "reason": reason,
                        "records": records,
                    },
                    maxlen=DLQ_ENTRIES,
                )
            pipeline.execute()

    def partition_of(self, stream: bytes) -> str:
        """The name under which the ledger knows a stream: 32 hex characters of a keyed hash."""
        return hmac.digest(self._partition_key, stream, hashlib.sha256).hex()[:32]

    def close(self) -> None:
        self._redis.connection_pool.disconnect()

    # -- what is there ----------------------------------------------------------------------

    def _survey(self, positions: Positions) -> list[Stream]:
        """Every stream in which something may have happened since the ledger's positions."""
        known = _newest_epochs(positions)
        names = self._discover()
        groups = self._groups(names.values())
        unread = self._first_unread(
            {name: known.get(partition, (0, NOWHERE))[1] for partition, name in names.items()}
        )
        busy = [
            (partition, name)
            for partition, name in names.items()
            if name in unread
            or not _is_quiet(groups.get(name), known.get(partition, (0, NOWHERE))[1])
        ]
        streams = []
        for chunk in _chunks(busy, LOOKS_AT_ONCE):
            streams += self._look(chunk, known, unread)
        return [self._with_its_epoch(stream, positions) for stream in streams]

    def _discover(self) -> dict[str, bytes]:
        """The streams of the prefix by partition."""
        with self._asking():
            found = self._redis.scan_iter(
                f"{self._prefix}:*:events", count=KEYS_AT_ONCE, _type="stream"
            )
            self._names = {self.partition_of(name): name for name in found}
        return self._names

    def _name_of(self, partition: str) -> bytes | None:
        return self._names.get(partition) or self._discover().get(partition)

    def _groups(self, names: Iterable[bytes]) -> dict[bytes, Group | None]:
        groups: dict[bytes, Group | None] = {}
        for chunk in _chunks(list(names), STREAMS_AT_ONCE):
            with self._asking(), self._redis.pipeline(transaction=False) as pipeline:
                for name in chunk:
                    pipeline.xinfo_groups(name)
                answers = pipeline.execute(raise_on_error=False)
            for name, answer in zip(chunk, answers, strict=True):
                if not self._is_gone(answer):
                    groups[name] = self._own_group(answer)
        return groups

    def _first_unread(self, places: Mapping[bytes, Position]) -> dict[bytes, EntryId]:
        """The first entry from each position on that can be read, of streams that have one."""
        found: dict[bytes, EntryId] = {}
        cursors = {
            name: before(position.end) if position.end else (0, 0)
            for name, position in places.items()
        }
        while cursors:
            entries = self._next_entries(cursors)
            cursors = {}
            for name, entry in entries.items():
                if fits(entry) or offset_of(entry) >= places[name].lost_end:
                    found[name] = entry
                else:  # recorded as lost: what comes after all ids of that offset?
                    cursors[name] = last_id_of(offset_of(entry))
        return found

    def _next_entries(self, cursors: Mapping[bytes, EntryId]) -> dict[bytes, EntryId]:
        found = {}
        for chunk in _chunks(list(cursors.items()), STREAMS_AT_ONCE):
            asked: dict[Any, Any] = {name: format_id(cursor) for name, cursor in chunk}
            with self._asking():
                answer: Any = self._redis.xread(asked, count=1)
            found.update({name: parse_id(entries[0][0]) for name, entries in answer or []})
        return found

    def _look(
        self,
        chunk: Sequence[tuple[str, bytes]],
        known: Mapping[str, tuple[int, Position]],
        unread: Mapping[bytes, EntryId],
    ) -> list[Stream]:
        """The streams as they are at one moment; those that are gone by now are left out."""
        with self._asking(), self._redis.pipeline(transaction=True) as pipeline:
            for partition, name in chunk:
                _, position = known.get(partition, (0, NOWHERE))
                pipeline.xinfo_stream(name)
                pipeline.xinfo_groups(name)
                for end in (position.end, position.seen_end):
                    probe = id_of(max(end, 1) - 1)
                    pipeline.xrange(name, *_range(probe, probe), count=1)
            answers = pipeline.execute(raise_on_error=False)
        streams = []
        for index, (partition, name) in enumerate(chunk):
            info, groups, claimed, seen = answers[4 * index : 4 * index + 4]
            if self._is_gone(info):
                continue
            epoch, position = known.get(partition, (0, NOWHERE))
            streams.append(
                replace(
                    self._stream(name, partition, epoch, position, info),
                    group=self._own_group(groups),
                    holds_claimed=bool(claimed),
                    holds_seen=bool(seen),
                    unread=unread.get(name),
                )
            )
        return streams

    def _with_its_epoch(self, stream: Stream, positions: Positions) -> Stream:
        """The stream as it is, or as the beginning of a new epoch."""
        if continues(stream):
            return stream
        epoch = stream.epoch + 1
        position = positions.get((stream.partition, epoch), NOWHERE)
        # Nothing of the new epoch is claimed: had it been, it would be the one that is known.
        return replace(stream, epoch=epoch, position=position, unread=stream.oldest)

    def _stream(
        self, name: bytes, partition: str, epoch: int, position: Position, info: Mapping[str, Any]
    ) -> Stream:
        if "entries-added" not in info:
            raise TelemetryError(
                f"source {self.name}: Redis at {self._address} is older than 7.0, which first "
                "counts the entries added to a stream; use Redis 7 or Valkey"
            )
        oldest, newest = info["first-entry"], info["last-entry"]
        return Stream(
            name=name,
            partition=partition,
            epoch=epoch,
            position=position,
            length=info["length"],
            added=info["entries-added"],
            last=parse_id(info["last-generated-id"]),
            deleted=parse_id(info["max-deleted-entry-id"]),
            oldest=parse_id(oldest[0]) if oldest else None,
            newest=parse_id(newest[0]) if newest else None,
            group=None,
        )

    def _losses(self, streams: Sequence[Stream], positions: Positions) -> list[Loss]:
        losses = [
            Loss(Slice(self.name, stream.partition, stream.epoch, start, end), reason)
            for stream in streams
            for start, end, reason in losses_in(stream, is_history=not positions)
        ]
        current = {partition: epoch for partition, (epoch, _) in _newest_epochs(positions).items()}
        current |= {stream.partition: stream.epoch for stream in streams}
        for (partition, epoch), position in positions.items():
            start = max(position.end, position.lost_end)
            reached = max(position.end, position.seen_end)
            if epoch < current[partition]:
                # Recorded even where nothing is known to be missing: a stream should not do that.
                if position.lost_end < reached:
                    lost = Slice(self.name, partition, epoch, start, max(start, reached))
                    losses.append(Loss(lost, "stream_recreated"))
            elif partition not in self._names and reached > start:
                lost = Slice(self.name, partition, epoch, start, reached)
                losses.append(Loss(lost, "stream_gone"))
        return losses

    # -- reading ----------------------------------------------------------------------------

    def _slices(self, stream: Stream) -> Iterator[SliceData]:
        start = end = stream.position.end
        lines, entries, read = bytearray(), 0, stream.read_before
        for entry, line in self._entries(stream):
            is_full = entries == self._slice_entries or len(lines) + len(line) > self._slice_bytes
            if entries and is_full:
                yield self._cut(stream, start, end, _taken(lines), read)
                start, entries = end, 0
            lines += line
            entries += 1
            end = offset_of(entry) + 1
            read = None if read is None else read + 1
        if entries:
            yield self._cut(stream, start, end, _taken(lines), read)

    def _cut(
        self, stream: Stream, start: int, end: int, lines: bytes, read: int | None
    ) -> SliceData:
        wanted = Slice(self.name, stream.partition, stream.epoch, start, end)
        self._read_after[wanted] = read
        return SliceData(wanted, lines, hashlib.sha256(stream.partition.encode()).hexdigest())

    def _entries(self, stream: Stream) -> Iterator[tuple[EntryId, bytes]]:
        """The unread entries up to the newest one that the survey saw, each as a line.

        Ends early where an entry may have been removed before it was read: `losses` sees it the
        next time, from the position reached here.
        """
        organisation = organisation_of(stream.name, self._prefix)
        cursor, last = id_of(stream.position.end), stream.newest
        count, past = FIRST_PAGE, stream
        while last is not None and cursor <= last:
            now, page = self._read_page(stream, cursor, last, count)
            if now is None or _lost_between(past, now, offset_of(cursor)):
                return
            made = []
            for entry, fields in page:
                if not fits(entry):
                    if offset_of(entry) >= stream.position.lost_end:
                        return
                    continue
                line = line_of(organisation, fields)
                made.append(line)
                yield entry, line
            if len(page) < count:
                return
            past, cursor, count = now, after(page[-1][0]), _next_count(count, made)

    def _read_page(
        self, stream: Stream, cursor: EntryId, last: EntryId, count: int
    ) -> tuple[Stream | None, list[tuple[EntryId, list[bytes]]]]:
        """Up to `count` entries from `cursor` to `last`, and the stream at the same moment."""
        with self._asking(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xrange(stream.name, *_range(cursor, last), count=count)
            pipeline.xinfo_stream(stream.name)
            page, info = pipeline.execute(raise_on_error=False)
        if self._is_gone(info) or self._is_gone(page):
            return None, []
        now = self._stream(stream.name, stream.partition, stream.epoch, stream.position, info)
        return (now if now.last >= last else None), self._page(page)

    def _page(self, answer: Any) -> list[tuple[EntryId, list[bytes]]]:
        return [(parse_id(entry), fields) for entry, fields in answer]

    # -- the consumer group -----------------------------------------------------------------

    def _own_group(self, answer: Any) -> Group | None:
        if self._is_gone(answer):
            return None
        for group in answer:
            if group["name"] == self._group.encode():
                last = parse_id(group["last-delivered-id"])
                return Group(last, group.get("entries-read"), group.get("lag"))
        return None

    def _create_group(self, stream: Stream) -> None:
        """Make the group where there is none, at the ledger's position."""
        if stream.group is not None:
            return
        end = stream.position.end
        last = id_of(end - 1) if end else (0, 0)
        self._set_group(stream.name, last, stream.read_before, create=True)

    def _pass_over_lost(self, stream: Stream) -> None:
        """Count what is recorded as lost as read: it is no lag, and what is lost later shows."""
        start, group = stream.accounted_to, stream.group
        if group is None or not stream.position.end < start <= stream.begins_at:
            return
        last = id_of(start - 1)
        if group.last < last <= stream.last:
            self._set_group(stream.name, last, stream.removed)

    def _advance_group(self, name: bytes, last: EntryId, read: int | None) -> None:
        with self._asking(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xinfo_stream(name)
            pipeline.xinfo_groups(name)
            info, groups = pipeline.execute(raise_on_error=False)
        if self._is_gone(info):
            return
        stream = replace(self._stream(name, "", 0, NOWHERE, info), group=self._own_group(groups))
        if stream.last < last:
            return  # the slice was of a stream that is no longer there
        read = stream.added if stream.last == last else read
        if stream.group is None:
            self._set_group(name, last, read, create=True)
        elif stream.group.last < last or stream.group.last > stream.last:
            self._set_group(name, last, read)
        self._acknowledge_pending(name, last)

    def _set_group(
        self, name: bytes, last: EntryId, read: int | None, *, create: bool = False
    ) -> None:
        set_group = self._redis.xgroup_create if create else self._redis.xgroup_setid
        with self._asking(), _ignoring(GROUP_CHANGED):
            set_group(name, self._group, format_id(last), entries_read=read)

    def _acknowledge_pending(self, name: bytes, last: EntryId) -> None:
        """Acknowledge what any consumer of the group, dead ones too, left pending up to `last`."""
        with self._asking(), _ignoring(GROUP_CHANGED):
            while pending := self._redis.xpending_range(
                name, self._group, b"-", format_id(last), PENDING_AT_ONCE
            ):
                ids: list[Any] = [item["message_id"] for item in pending]
                self._redis.xack(name, self._group, *ids)

    # -- the server -------------------------------------------------------------------------

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what the client library raises into one clear line."""
        try:
            yield
        except RedisError as error:
            raise self._trouble(error) from None

    def _is_gone(self, answer: Any) -> bool:
        """Whether a stream vanished, or became another type, between two requests."""
        if not isinstance(answer, RedisError):
            return False
        if str(answer).startswith(("no such key", "ERR no such key", "WRONGTYPE")):
            return True
        raise self._trouble(answer)

    def _trouble(self, error: RedisError) -> TelemetryError:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        # The library puts the command, and with it the stream's name, before the answer.
        said = said.rpartition("of pipeline caused error: ")[2]
        return TelemetryError(f"source {self.name}: Redis at {self._address}: {said}")


@contextmanager
def _ignoring(answers: tuple[str, ...]) -> Iterator[None]:
    """Pass over error answers that begin with one of these."""
    try:
        yield
    except ResponseError as error:
        if not str(error).startswith(answers):
            raise


def _client(url: str) -> tuple[Redis, str]:
    """A client for the address, and where it goes without user and password."""
    options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    options |= {
        # What a page of entries looks like must not depend on options in the address.
        "protocol": 2,
        "decode_responses": False,
        "socket_connect_timeout": SECONDS_TO_CONNECT,
        "socket_timeout": SECONDS_TO_ANSWER,
        "retry": Retry(ExponentialBackoff(cap=1, base=0.1), retries=2),
    }
    client = Redis(connection_pool=ConnectionPool(**options))
    # The library makes a dict of an entry's fields: one that stands twice would be lost.
    client.set_response_callback("XRANGE", lambda answer, **_: answer)
    place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    return client, f"{place}/{options.get('db', 0)}"


def _newest_epochs(positions: Positions) -> dict[str, tuple[int, Position]]:
    newest: dict[str, tuple[int, Position]] = {}
    for (partition, epoch), position in positions.items():
        if partition not in newest or epoch > newest[partition][0]:
            newest[partition] = (epoch, position)
    return newest


def _is_quiet(group: Group | None, position: Position) -> bool:
    """Whether nothing was added since the last entry claimed, which was acknowledged."""
    end = max(position.end, position.lost_end)
    # Without its count, Redis gives a group of an emptied stream a lag of 0, whatever it missed.
    if group is None or group.read is None or end == 0 or position.seen_end > end:
        return False
    return group.lag == 0 and group.last == id_of(end - 1)


def _unread_entries(stream: Stream) -> int:
    if stream.unread is None:
        return 0
    if stream.group_is_in_step and stream.group and stream.group.lag is not None:
        return max(1, stream.group.lag)
    return stream.length


def _lost_between(past: Stream, now: Stream, offset: int) -> bool:
    """Whether entries from `offset` on may have been removed between two moments."""
    if now.deleted > past.deleted and offset_of(now.deleted) >= offset:
        return True
    is_another_stream = now.added < past.added
    return now.begins_at > offset and (is_another_stream or now.removed > past.removed)


def _range(first: EntryId, last: EntryId) -> tuple[bytes, bytes]:
    return format_id(first), format_id(last)


def _taken(lines: bytearray) -> bytes:
    """The lines, which are then let go of: a slice is held once while it is loaded."""
    taken = bytes(lines)
    lines.clear()
    return taken


def _next_count(count: int, made: Sequence[bytes]) -> int:
    """How many entries the next page asks for: about PAGE_BYTES, at most twice as many."""
    largest = max(map(len, made), default=1)
    return max(1, min(2 * count, LARGEST_PAGE, PAGE_BYTES // largest))


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
