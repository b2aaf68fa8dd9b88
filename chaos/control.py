"""The positive control: damage of a known size, which the accounting must report to the record.

Zeros are what a broken comparison would show, too. So the last act of every run spoils the
warehouse in three ways and compares again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client

from chaos.accounting import Verdict

_COPIES = 7
#: Events that are accepted whatever the catalogue says at the time.
_PLAIN = "name = 'page_viewed'"
_UNKNOWN = "reason = 'unknown_event'"
_EVENTS = "raw.product_telemetry_events_storage"


@dataclass(frozen=True)
class Damage:
    """What was done, and by how much the figures must grow. `hidden` records are of events that
    may be missing from the view: whether they count as lost or as unaccounted is not known."""

    what: str
    lost: int = 0
    duplicated: int = 0
    hidden: int = 0

    def is_noticed(self, before: Verdict, after: Verdict) -> bool:
        lost, duplicated = after.lost - before.lost, after.duplicated - before.duplicated
        unaccounted = after.unaccounted - before.unaccounted
        if duplicated != self.duplicated:
            return False
        if self.hidden:
            return lost + unaccounted >= self.hidden
        return lost == self.lost and unaccounted >= self.lost + self.duplicated


def check_control(client: Client, before: Verdict, judge: Callable[[], Verdict]) -> list[str]:
    """Do the damage step by step and judge after each; returns what was not noticed."""
    missed = []
    # Copies first: they would fill up the sums that the deletions leave short.
    for harm in (_insert_copies, _delete_rows, _delete_letters):
        damage = harm(client)
        if damage is None:
            missed.append(f"nothing is there for {harm.__name__}")
            continue
        after = judge()
        if not damage.is_noticed(before, after):
            missed.append(f"{damage}: from {_shown(before)} to {_shown(after)}")
        before = after
    return missed


def _shown(verdict: Verdict) -> str:
    return (
        f"{verdict.lost} lost, {verdict.duplicated} duplicated, {verdict.unaccounted} unaccounted"
    )


def _delete_rows(client: Client) -> Damage | None:
    """Rows of one settled slice vanish, as if its insert had been cut short."""
    largest = _largest_batch(client, "raw.product_telemetry_events", _PLAIN)
    if largest is None:
        return None
    batch_id, rows = largest
    client.command(
        f"DELETE FROM {_EVENTS} WHERE batch_id = {batch_id} AND {_PLAIN}",
        settings={"lightweight_deletes_sync": 2},
    )
    return Damage("rows of a slice deleted", lost=rows)


def _insert_copies(client: Client) -> Damage | None:
    """Some events stand twice, as if a second worker had landed them under another key."""
    client.command(
        f"INSERT INTO {_EVENTS} SELECT * REPLACE (session_id + 1 AS session_id) "
        f"FROM (SELECT * FROM {_EVENTS} FINAL WHERE {_PLAIN} "
        f"ORDER BY batch_id, event_id LIMIT {_COPIES})"
    )
    return Damage("events copied", duplicated=_COPIES)


def _delete_letters(client: Client) -> Damage | None:
    """Dead letters of one slice vanish: rejected records that nobody can find."""
    largest = _largest_batch(client, "raw.dead_letters", _UNKNOWN)
    if largest is None:
        return None
    batch_id, letters = largest
    client.command(
        f"DELETE FROM raw.dead_letters WHERE batch_id = {batch_id} AND {_UNKNOWN}",
        settings={"lightweight_deletes_sync": 2},
    )
    return Damage("dead letters deleted", hidden=letters)


def _largest_batch(client: Client, table: str, condition: str) -> tuple[int, int] | None:
    """(batch, rows) of the batch that has most rows of this kind."""
    found = client.query(
        f"SELECT batch_id, count() FROM {table} WHERE {condition} "
        "GROUP BY batch_id ORDER BY count() DESC, batch_id LIMIT 1"
    ).result_rows
    return (int(found[0][0]), int(found[0][1])) if found else None
