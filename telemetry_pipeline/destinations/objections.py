"""Who withdrew consent or was erased, looked up again before every request that leaves."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from telemetry_pipeline.destinations.statements import statement


class Objections:
    """The subjects of privacy.consent_withdrawals and privacy.erasure_tombstones.

    `refresh` costs one small query; the lists are read again only when something changed.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._state: tuple[object, ...] | None = None
        self._reasons: dict[tuple[str, int], str] = {}
        self.erasure_epoch = 0

    def refresh(self) -> None:
        row = self._client.query(statement("objections_state")).result_rows[0]
        state = tuple(row)
        if state == self._state:
            return
        self.erasure_epoch = int(row[2])
        rows = self._client.query(statement("objections")).result_rows
        consent = {(kind, subject): reason for reason, kind, subject in rows if reason == "consent"}
        erasure = {(kind, subject): reason for reason, kind, subject in rows if reason == "erasure"}
        self._reasons = consent | erasure
        self._state = state

    def reason(self, *, user: int, session: int, organisation: int) -> str | None:
        """Why an event of these subjects (0: absent) must not leave: consent, erasure or None."""
        if not self._reasons:
            return None
        found = {
            self._reasons.get(("user", user)) if user else None,
            self._reasons.get(("session", session)) if session else None,
            self._reasons.get(("organisation", organisation)) if organisation else None,
        }
        return "erasure" if "erasure" in found else "consent" if "consent" in found else None
