"""Lands slices exactly once: claim, stage, land, check, result; and finishes what others left."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from telemetry_pipeline.errors import TelemetryError
from telemetry_pipeline.identity.keys import Key
from telemetry_pipeline.ingest.ledger import (
    INSERT_SECONDS,
    Claim,
    ClaimTerms,
    Landed,
    Ledger,
    OpenClaim,
    query_id_of,
)
from telemetry_pipeline.ingest.staging import Staging
from telemetry_pipeline.ingest.statements import Contract
from telemetry_pipeline.sources.base import Loss, Positions, Slice, SliceData, Source

log = logging.getLogger(__name__)

#: Settings that decide where blocks end: one block per target and partition.
ONE_BLOCK = {
    "min_insert_block_size_rows": 1_000_000_000,
    "min_insert_block_size_bytes": 1_000_000_000_000,
    "max_threads": 1,
    "max_insert_threads": 1,
    "async_insert": 0,
    "optimize_on_insert": 0,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # Weeks of ten years: the longest retention telemetry.yaml allows.
    "max_partitions_per_insert_block": 600,
}


class IngestError(TelemetryError):
    """A slice did not land as it was received. Its claim stays open and is taken over later."""


@dataclass(frozen=True)
class LoaderKeys:
    """The keys that statements get as parameters. `edge`: of sources that hash on read."""

    pseudonym: Key
    event: Key
    dead_letter: Key
    edge: Key | None = None

    def parameters(self) -> dict[str, str]:
        return {
            "secret_key_organisation": self.pseudonym.derive("organisation"),
            "secret_key_user": self.pseudonym.derive("user"),
            "secret_key_session": self.pseudonym.derive("session"),
            "secret_key_event": self.event.derive("event_id"),
            "secret_key_dead_letter": self.dead_letter.derive("payload"),
            "secret_key_dead_letter_nonce": self.dead_letter.derive("nonce"),
            "secret_key_edge": self.edge.secret.hex() if self.edge else "",
            "edge_key_id": self.edge.key_id if self.edge else "",
        }


@dataclass
class IngestReport:
    """What one run did, summed over its slices. Unit: log records."""

    slices: int = 0
    recovered: int = 0
    lost_slices: int = 0
    received: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    unknown_attributes: int = 0
    bytes: int = 0
    waiting: int = 0

    def add(self, landed: Landed, size: int) -> None:
        self.slices += 1
        self.bytes += size
        self.received += landed.received
        self.accepted += landed.accepted
        self.duplicates += landed.duplicates
        self.unknown_attributes += landed.unknown_attributes
        for total, part in ((self.rejected, landed.rejected), (self.dropped, landed.dropped)):
            for reason, records in part.items():
                total[reason] = total.get(reason, 0) + records


@dataclass(frozen=True)
class Loader:
    """Lands the slices of one source in one warehouse session (it holds the staging table)."""

    client: Client
    source: Source
    contract: Contract
    keys: LoaderKeys
    run_id: str
    timezone: str
    #: Where data for an embedded warehouse may be put.
    spool: Path | None = None

    @cached_property
    def _staging(self) -> Staging:
        settings = ONE_BLOCK | {"max_execution_time": INSERT_SECONDS}
        return Staging(self.client, self.contract, self.keys.parameters(), settings, self.spool)

    @property
    def _ledger(self) -> Ledger:
        return Ledger(self.client, self.source.name)

    @property
    def _terms(self) -> ClaimTerms:
        return ClaimTerms(
            run_id=self.run_id,
            contract_hash=self.contract.contract_hash,
            statement_hash=self.contract.statement_hash,
            pseudonym_key_id=self.keys.pseudonym.key_id,
        )

    def run(
        self, *, max_bytes: int, on_slice: Callable[[IngestReport], None] | None = None
    ) -> IngestReport:
        """Finish what was left open, then land what is new, up to `max_bytes`.

        Raises IngestError when a slice's check fails; slices landed before it stay landed.
        """
        report = IngestReport()
        self._keep_contract()
        failed = self._finish_open_claims(report)
        positions = self._note_reach()
        for loss in self.source.losses(positions):
            log.error("source %s: %s is lost: %s", loss.slice.source, loss.slice, loss.reason)
            self._ledger.record_loss(loss)
            report.lost_slices += 1
        try:
            while self._load_new(report, max_bytes, on_slice):
                pass
        finally:
            # What is seen now and gone at the next look is then known to be lost.
            positions = self._note_reach()
        report.waiting = self.source.waiting(positions)
        if failed:
            raise IngestError(f"{len(failed)} slices stay open; the first: {failed[0]}")
        return report

    def _note_reach(self) -> Positions:
        positions = self._ledger.positions()
        self._ledger.note_reach(self.source.reach(positions), positions)
        return positions

    def _load_new(
        self,
        report: IngestReport,
        max_bytes: int,
        on_slice: Callable[[IngestReport], None] | None,
    ) -> bool:
        """Land what is new; returns whether to plan again, because another run got in between.

        A slice that another run owns may end elsewhere than the one that was cut here: what
        follows it is known only from the ledger.
        """
        for cut in self.source.read_new(self._ledger.positions()):
            claim = self._claim(cut, attempt=1)
            if claim is None:
                log.info("slice %s is another run's", cut.slice)
                return True
            self._load(claim, cut, report)
            if on_slice is not None:
                on_slice(report)
            if report.bytes >= max_bytes:
                break
            del cut  # or its bytes would be held while the next are read
        return False

    def _claim(self, cut: SliceData, attempt: int) -> Claim | None:
        return self._ledger.claim(
            cut.slice, attempt, self._terms, bytes_hash=cut.bytes_hash, tail_sha256=cut.tail_sha256
        )

    def _load(self, claim: Claim, cut: SliceData, report: IngestReport) -> None:
        with self._staged(claim, cut) as received:
            self._land(claim)
        landed = self._ledger.landed(cut.slice.batch_id)
        if not landed.is_whole or landed.received != received:
            raise IngestError(
                f"{cut.slice}: received {received} records, landed {landed}; the slice stays open "
                "and is taken over after its deadline"
            )
        report.add(self._settle(claim.slice, claim.attempt, landed), len(cut.data))

    @contextmanager
    def _staged(self, claim: Claim, cut: SliceData) -> Iterator[int]:
        """Parse and judge the slice in the session's memory; gives the number of records received.

        What it leaves there is gone with the next slice, or with the session.
        """
        yield self._staging.stage(
            cut.data,
            self.source.encoding,
            hashes_on_read=self.source.hashes_on_read,
            batch_id=claim.slice.batch_id,
            slice_time_ms=claim.slice_time_ms,
        )

    def _land(self, claim: Claim) -> None:
        batch_id = claim.slice.batch_id
        self.client.command(
            self.contract.land_sql,
            parameters={
                "batch_id": batch_id,
                "attempt": claim.attempt,
                "source_name": claim.slice.source,
                "source_partition": claim.slice.partition,
                "slice_time_ms": claim.slice_time_ms,
                "deadline_ms": claim.deadline_ms,
                "pseudonym_key_id": self.keys.pseudonym.key_id,
                "dead_letter_key_id": self.keys.dead_letter.key_id,
            },
            settings=ONE_BLOCK
            | {
                "max_execution_time": INSERT_SECONDS,
                "insert_deduplication_token": f"{query_id_of(batch_id, claim.attempt)}",
                "query_id": query_id_of(batch_id, claim.attempt),
            },
        )

    def _settle(
        self, wanted: Slice, attempt: int, landed: Landed, *, deadline_ms: int = 0
    ) -> Landed:
        """Write a checked batch's result; gives what the result says."""
        # The days are touched again before the result: a mart built between the insert and this
        # line has read a batch that was not checked yet, and must count as stale.
        removed = self._ledger.yield_copies(wanted, attempt, self.timezone)
        if removed:
            log.info("source %s: %s gave up %s raced copies", wanted.source, wanted, removed)
        self._ledger.touch(wanted, attempt, "settled", self.timezone)
        self._ledger.finish(wanted, attempt, landed, deadline_ms=deadline_ms)
        self.source.acknowledge(wanted, landed.rejected)
        return landed.with_duplicates(removed)

    def _finish_open_claims(self, report: IngestReport) -> list[Exception]:
        """Take over what is due. A slice that fails again must not keep new ones waiting."""
        failed: list[Exception] = []
        for left in self._ledger.open_claims():
            if left.may_be_taken_over:
                try:
                    self._take_over(left, report)
                except (TelemetryError, DatabaseError) as error:
                    log.error("source %s: %s failed again", left.slice.source, left.slice)
                    failed.append(error)
        return failed

    def _take_over(self, left: OpenClaim, report: IngestReport) -> None:
        """Bring a slice whose owner is gone to its end: count first, then heal if need be."""
        self._ledger.kill(query_id_of(left.slice.batch_id, left.attempt))
        landed = self._ledger.landed(left.slice.batch_id)
        is_there = landed.is_whole and not landed.is_empty
        # Before the claim: what cannot be looked at now must not use up an attempt.
        data = None if is_there else self.source.read_again(left.slice, self._ledger.positions())
        # Whoever owns the next attempt settles, heals or gives up; nobody else may remove a row.
        claim = self._ledger.claim(
            left.slice,
            left.attempt + 1,
            self._terms,
            bytes_hash=left.bytes_hash,
            tail_sha256=left.tail_sha256,
        )
        if claim is None:
            return
        if is_there:
            report.add(self._settle(left.slice, landed.attempt, landed), 0)
            report.recovered += 1
            return
        again = SliceData(left.slice, data or b"", left.tail_sha256)
        if data is None or again.bytes_hash != left.bytes_hash:
            self._give_up(claim, landed, report)
            return
        if not landed.is_empty:
            self._ledger.touch(left.slice, claim.attempt, "deleting", self.timezone)
            self._ledger.remove(left.slice.batch_id, before_attempt=claim.attempt)
        self._load(claim, again, report)
        report.recovered += 1

    def _give_up(self, claim: Claim, landed: Landed, report: IngestReport) -> None:
        """The bytes are gone or changed: what landed is kept and counted, the rest is lost.

        Only before the claim's deadline: whoever owns the next one may have found them again.
        """
        wanted = claim.slice
        log.error("source %s: the bytes of %s are gone or changed", wanted.source, wanted)
        self._ledger.record_loss(Loss(wanted, "bytes_gone"), deadline_ms=claim.deadline_ms)
        report.lost_slices += 1
        # A torn batch may have rows on days that no touch landed for.
        self._ledger.touch(wanted, claim.attempt, "deleting", self.timezone)
        found = landed.as_found()
        attempt = found.attempt or claim.attempt
        settled = self._settle(wanted, attempt, found, deadline_ms=claim.deadline_ms)
        report.add(settled, 0)

    def _keep_contract(self) -> None:
        self.client.command(
            "INSERT INTO ops.contracts SELECT {hash:String}, {body:String}, now64(6, 'UTC') "
            "WHERE {hash:String} NOT IN (SELECT contract_hash FROM ops.contracts)",
            parameters={"hash": self.contract.contract_hash, "body": self.contract.contract_json},
        )


def new_session_id() -> str:
    """A session of its own for each loader: its staging table is nobody else's."""
    return f"ingest-{uuid.uuid4()}"
