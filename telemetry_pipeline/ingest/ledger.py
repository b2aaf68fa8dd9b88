"""The ingest ledger: who owns a slice, what it left behind, and what came of it.

The state table stands in ARCHITECTURE.md. Nothing here trusts a deduplication token: it only
keeps simultaneous claims apart; ownership and recovery are decided by reading back and counting.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.ingest.statements import statement
from telemetry_pipeline.sources.base import Loss, Position, Slice

#: A claim's insert must have begun within this time of the claim.
DEADLINE_SECONDS = 30
#: The longest one insert may run.
INSERT_SECONDS = 60
#: What clocks of a cluster may differ by.
CLOCK_MARGIN_SECONDS = 5
#: The hash of no bytes.
NOTHING_BEFORE = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Claim:
    """An owned slice: the only holder of (slice, attempt) until deadline_ms (warehouse clock)."""

    slice: Slice
    attempt: int
    slice_time_ms: int
    deadline_ms: int


@dataclass(frozen=True)
class OpenClaim:
    """A slice whose owner has not written a result (yet)."""

    slice: Slice
    attempt: int
    bytes_hash: str
    tail_sha256: str
    may_be_taken_over: bool


@dataclass(frozen=True)
class Landed:
    """What a batch left in each target, and what its own counts say. Unit: log records.

    `events`, `dead_letters` (by reason) and `touched` are counted in their tables; `attempt` and
    the rest come from the counts, which are one block: all there or none (attempt 0).
    """

    attempt: int
    attempts: int
    events: int
    dead_letters: Mapping[str, int]
    touched: int
    received: int
    accepted: int
    duplicates: int
    rejected: Mapping[str, int]
    dropped: Mapping[str, int]
    unknown_attributes: int

    @property
    def is_whole(self) -> bool:
        """Every target holds what one attempt counted; true of a slice without records, too."""
        return (
            self.attempts <= 1
            and self.events == self.touched == self.accepted
            and self.dead_letters == self.rejected
        )

    @property
    def is_empty(self) -> bool:
        return self.attempts == 0 and self.events == 0 and not self.dead_letters

    def with_duplicates(self, records: int) -> Landed:
        """The same after `records` accepted rows turned out to be copies and were removed."""
        return replace(
            self,
            events=self.events - records,
            accepted=self.accepted - records,
            duplicates=self.duplicates + records,
        )

    def as_found(self) -> Landed:
        """A torn batch, counted by the rows that are there, for when it cannot be replayed."""
        duplicates = self.duplicates if self.attempts <= 1 else 0
        dropped = self.dropped if self.attempts <= 1 else {}
        return replace(
            self,
            received=self.events
            + duplicates
            + sum(self.dead_letters.values())
            + sum(dropped.values()),
            accepted=self.events,
            duplicates=duplicates,
            rejected=self.dead_letters,
            dropped=dropped,
        )


@dataclass(frozen=True)
class ClaimTerms:
    """What changes a slice's outcome, recorded with its claim."""

    run_id: str
    contract_hash: str
    statement_hash: str
    pseudonym_key_id: str


class Ledger:
    """Reads and writes the ledger tables over one client. All times are the warehouse's."""

    def __init__(self, client: Client, source: str) -> None:
        self._client = client
        self._source = source

    def positions(self) -> dict[tuple[str, int], Position]:
        rows = self._rows("positions.sql", {"source": self._source})
        return {
            (row["partition"], row["epoch"]): Position(
                row["end"],
                # Seen, but not claimed yet: nothing stands before its start.
                row["tail_sha256"] or NOTHING_BEFORE,
                row["lost_end"],
                row["seen_end"],
            )
            for row in rows
        }

    def note_reach(
        self, reach: Mapping[tuple[str, int], int], positions: Mapping[tuple[str, int], Position]
    ) -> None:
        """Remember how far a source was seen to reach: what is gone later is then known."""
        grown = [
            [self._source, partition, epoch, end]
            for (partition, epoch), end in reach.items()
            if (known := positions.get((partition, epoch))) is None
            or end > max(known.seen_end, known.end)
        ]
        if grown:
            columns = ["source", "partition", "epoch", "seen_end"]
            self._client.insert("ops.source_ends", grown, column_names=columns)

    def open_claims(self) -> list[OpenClaim]:
        grace = INSERT_SECONDS + CLOCK_MARGIN_SECONDS
        rows = self._rows("open_claims.sql", {"source": self._source, "grace_seconds": grace})
        return [
            OpenClaim(
                slice=Slice(
                    self._source,
                    row["partition"],
                    row["epoch"],
                    row["start_offset"],
                    row["end_offset"],
                ),
                attempt=row["attempt"],
                bytes_hash=row["bytes_hash"],
                tail_sha256=row["tail_sha256"],
                may_be_taken_over=bool(row["may_be_taken_over"]),
            )
            for row in rows
        ]

    def claim(
        self,
        wanted: Slice,
        attempt: int,
        terms: ClaimTerms,
        *,
        bytes_hash: str,
        tail_sha256: str,
    ) -> Claim | None:
        """Try to own (slice, attempt); None when another writer does."""
        key = {
            "source": wanted.source,
            "partition": wanted.partition,
            "epoch": wanted.epoch,
            "start_offset": wanted.start,
            "attempt": attempt,
        }
        claim_id = uuid.uuid4()
        self._insert(
            "claim.sql",
            key
            | vars(terms)
            | {
                "end_offset": wanted.end,
                "batch_id": wanted.batch_id,
                "claim_id": str(claim_id),
                "deadline_seconds": DEADLINE_SECONDS,
                "bytes_hash": bytes_hash,
                "tail_sha256": tail_sha256,
            },
            token=json.dumps(["claim", *key.values()]),
        )
        (owner,) = self._rows("owner.sql", key)
        if uuid.UUID(str(owner["claim_id"])) != claim_id:
            return None
        return Claim(wanted, attempt, owner["slice_time_ms"], owner["deadline_ms"])

    def landed(self, batch_id: int) -> Landed:
        (row,) = self._rows("landed.sql", {"batch_id": batch_id})
        return Landed(**row)

    def touch(self, wanted: Slice, attempt: int, kind: str, timezone: str) -> None:
        """Note the days of a batch as settled (checked) or deleting (rows are about to go)."""
        self._insert(
            f"touch_{kind}.sql",
            {"batch_id": wanted.batch_id, "attempt": attempt, "timezone": timezone},
            token=json.dumps(["touch", kind, wanted.batch_id, attempt]),
        )

    def finish(self, wanted: Slice, attempt: int, landed: Landed, *, deadline_ms: int = 0) -> None:
        """Write the result of a checked batch; nothing where it has one. Raises DatabaseError when
        rows are missing that nobody gave up, and past the deadline (warehouse clock)."""
        self._insert(
            "result.sql",
            {
                "source": wanted.source,
                "partition": wanted.partition,
                "epoch": wanted.epoch,
                "start_offset": wanted.start,
                "end_offset": wanted.end,
                "attempt": attempt,
                "batch_id": wanted.batch_id,
                "received": landed.received,
                "accepted": landed.accepted,
                "duplicates": landed.duplicates,
                "rejected_reasons": list(landed.rejected),
                "rejected_records": list(landed.rejected.values()),
                "dropped_reasons": list(landed.dropped),
                "dropped_records": list(landed.dropped.values()),
                "unknown_attributes": landed.unknown_attributes,
                "deadline_ms": deadline_ms,
            },
            token=json.dumps(["result", wanted.batch_id]),
        )

    def remove(self, batch_id: int, before_attempt: int) -> None:
        """Delete what earlier attempts left behind, in every target. Batch ids are not secret.

        Only the owner of `before_attempt` may call this; its own rows and those of whoever takes
        over from it stay, however late it wakes up.
        """
        for table in (
            "raw.product_telemetry_events_storage",
            "raw.dead_letters",
            "ops.slice_counts",
        ):
            self._client.command(
                f"DELETE FROM {table} WHERE batch_id = {batch_id:d} "
                f"AND attempt < {before_attempt:d}",
                settings={"lightweight_deletes_sync": 2},
            )

    def yield_copies(self, wanted: Slice, attempt: int, timezone: str) -> int:
        """Give up copies of events that another batch landed at the same moment; how many rows.

        Neither lookup of duplicates saw the other's rows. Of two such batches at least one comes
        here after both have landed, and the first that does gives up its own, so one copy stays.
        """
        removed = 0
        me = (wanted.batch_id, attempt)
        landing_seconds = DEADLINE_SECONDS + INSERT_SECONDS + CLOCK_MARGIN_SECONDS
        batch = {"batch_id": wanted.batch_id}
        window = batch | {"landing_seconds": landing_seconds}
        # Most often nobody else is landing, and nothing has to be compared.
        ((rival_claims,),) = self._client.query(statement("rival_claims.sql"), window).result_rows
        if not rival_claims:
            return 0
        for rival in self._rows("rivals.sql", window):
            # A rival with a result gives nothing up any more.
            if (
                not self._decide(me, (rival["batch_id"], rival["attempt"]))
                and not rival["is_settled"]
            ):
                continue
            before = self.landed(wanted.batch_id).events
            self.touch(wanted, attempt, "deleting", timezone)
            self._client.command(
                statement("remove_copies.sql"),
                batch | {"attempt": attempt, "rival_id": rival["batch_id"]},
                settings={"lightweight_deletes_sync": 2},
            )
            removed += before - self.landed(wanted.batch_id).events
        return removed

    def _decide(self, me: tuple[int, int], rival: tuple[int, int]) -> bool:
        """Whether this (batch, attempt) gives its copies up: the first to offer does."""
        lower, higher = sorted((me, rival))
        pair = {
            "lower_batch_id": lower[0],
            "lower_attempt": lower[1],
            "higher_batch_id": higher[0],
            "higher_attempt": higher[1],
        }
        self._insert(
            "yield_copies.sql",
            pair | {"batch_id": me[0], "decision_id": str(uuid.uuid4())},
            token=json.dumps(["copies", *pair.values()]),
        )
        (decision,) = self._rows("yields.sql", pair)
        return bool(decision["yields_batch_id"] == me[0])

    def record_loss(self, loss: Loss, *, deadline_ms: int = 0) -> None:
        """Record a range as lost, once. Raises DatabaseError past the deadline."""
        wanted = vars(loss.slice)
        self._insert(
            "record_loss.sql",
            wanted | {"reason": loss.reason, "deadline_ms": deadline_ms},
            token=json.dumps(["loss", *wanted.values(), loss.reason]),
        )

    def kill(self, query_id: str) -> None:
        """End a query of a worker that may still be alive."""
        self._client.command(
            "KILL QUERY WHERE query_id = {query_id:String} SYNC", parameters={"query_id": query_id}
        )

    def _rows(self, name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        return list(self._client.query(statement(name), parameters).named_results())

    def _insert(self, name: str, parameters: dict[str, Any], token: str) -> None:
        self._client.command(
            statement(name), parameters, settings={"insert_deduplication_token": token}
        )


def query_id_of(batch_id: int, attempt: int) -> str:
    """The query id under which an attempt lands its rows: known to whoever must kill it."""
    return f"land-{batch_id}-{attempt}"
