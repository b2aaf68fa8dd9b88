"""Why a record was not accepted: every reason there is, in the order of judgement."""

from __future__ import annotations

#: Dropped by policy: counted, never stored, not even in the dead letters.
DROPPED = {
    "not_an_event": "a log record without an event name",
    "consent_absent": "no consent.analytics, and the policy drops such events",
    "consent_denied": "consent.analytics is anything but granted",
    "consent_withdrawn": "the person withdrew consent",
    "erased": "the person or organisation was erased",
    "expired": "older than the raw retention less one day",
}

#: Rejected: kept encrypted in the dead letters until they can be replayed or expire.
REJECTED = {
    "undecodable": "the line is not a JSON object",
    "not_logs": "the line is JSON, but holds no OTLP log record",
    "unknown_event": "the event is not in the catalogue",
    "raw_identifier": "an id was not hashed before it arrived",
    "invalid_attribute": "a value has the wrong type or is outside the catalogue's limits",
    "missing_attribute": "a required attribute is absent",
    "event_id_conflict": "the event id was used before with another name or time",
}
