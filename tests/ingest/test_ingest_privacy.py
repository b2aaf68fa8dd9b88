"""Nothing personal is stored in clear, no key is stored at all, and what is kept can be opened."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fresh import make_project
from log_records import (
    MemorySource,
    Outcome,
    common,
    edge,
    line,
    make_loader,
    outcomes,
    record,
)
from stored_bytes import stored

from telemetry_pipeline.identity.keys import Key, read_key
from telemetry_pipeline.ingest.ledger import Claim
from telemetry_pipeline.ingest.loader import Loader, new_session_id
from telemetry_pipeline.paths import Project
from telemetry_pipeline.warehouse.client import Address, connect
from telemetry_pipeline.warehouse.embedded import read_endpoint
from telemetry_pipeline.warehouse.migrate import migrate

HOUR_AGO = int(time.time() * 1000) - 3_600_000
CONTROL_ROUTE = "/canary-control/route"
CONTROL_FEATURE = "canary_control_in_the_payload"
EDGE_USER = edge("user", "canary")
CANARIES = {
    "in user.email": "canary-email@example.com",
    "in an unknown attribute": "canary-unknown@example.com",
    "in an unknown attribute's key": "canary-key@example.com",
    "in the body": "canary-body@example.com",
    "as a raw id": "canary-raw-id@example.com",
    "as a second raw id": "canary-second-id@example.com",
    "as an unknown event's name": "canary-name@example.com",
    "in a value that is not allowed": "canary-value@example.com",
    "as an event id": "canary-event-id@example.com",
    "in a line that is no JSON": "canary-line@example.com",
    "in an event without consent": "canary-denied@example.com",
    "in a log record that is no event": "canary-log@example.com",
    "in an expired event": "canary-expired@example.com",
    "as an edge id": EDGE_USER,
}
WITH_ALL_CANARIES = b"".join(
    [
        line(
            record(
                "feature_viewed",
                common(
                    "canary",
                    event__id=CANARIES["as an event id"],
                    user__email=CANARIES["in user.email"],
                    x__y=CANARIES["in an unknown attribute"],
                    url__template=CONTROL_ROUTE,
                    ui__feature=CONTROL_FEATURE,
                    ui__surface="page",
                )
                | {CANARIES["in an unknown attribute's key"]: "x"},
                HOUR_AGO,
                body={"stringValue": CANARIES["in the body"]},
            ),
            record(
                CANARIES["as an unknown event's name"],
                common("canary", user__email=CANARIES["in user.email"]),
                HOUR_AGO,
            ),
            record(
                "page_viewed",
                common(
                    enduser__pseudo__id=CANARIES["as a raw id"],
                    user__id=CANARIES["as a second raw id"],
                ),
                HOUR_AGO,
            ),
            record(
                "feature_viewed",
                common("canary", ui__feature=CANARIES["in a value that is not allowed"]),
                HOUR_AGO,
            ),
            record(
                "page_viewed",
                common(consent__analytics="denied", x=CANARIES["in an event without consent"]),
                HOUR_AGO,
            ),
            record(
                None,
                common(x=CANARIES["in a log record that is no event"]),
                HOUR_AGO,
                body={"stringValue": CANARIES["in a log record that is no event"]},
            ),
            record("page_viewed", common(x=CANARIES["in an expired event"]), 1_600_000_000_000),
            # The same event id for another event: a conflict.
            record("page_viewed", common(event__id=CANARIES["as an event id"]), HOUR_AGO),
        ),
        f"panic: no user {CANARIES['in a line that is no JSON']}\n".encode(),
    ]
)
REASONS = {
    "unknown_event",
    "raw_identifier",
    "invalid_attribute",
    "event_id_conflict",
    "undecodable",
}


@dataclass(frozen=True)
class Kept:
    """What the warehouse kept: its folder, what it printed, and the dead letters."""

    folder: Path
    printed: bytes
    letters: list[dict[str, Any]]
    project: Project

    def key(self, name: str) -> Key:
        return read_key(name, self.project.keys_dir)

    def where(self, text: bytes) -> list[Path]:
        """The files that hold this text, packed or not."""
        return sorted({path for path, data in stored(self.folder) if text in data})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """An embedded warehouse of its own, that took all canaries, was merged and ended."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        project = make_project(root, Address("http", "localhost", 1, "nobody", ""), patch)
        patch.delenv("CLICKHOUSE_URL")
        process = _start_warehouse(project)
        with closing(connect(project, session_id=new_session_id())) as client:
            letters = _ingest_everything(client, project)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=20)
        yield Kept(project.warehouse_dir, printed, letters, project)


def _start_warehouse(project: Project) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "telemetry_pipeline.warehouse.embedded"),
            *("--data-dir", str(project.warehouse_dir)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    ends = time.monotonic() + 60
    while read_endpoint(project.warehouse_dir) is None:
        assert process.poll() is None and time.monotonic() < ends, "no warehouse"
        time.sleep(0.05)
    return process


class FailsWhileLanding(Loader):
    """Its statement, which carries the keys, ends with an error."""

    def _land(self, claim: Claim) -> None:
        super()._land(replace(claim, deadline_ms=0))


def _ingest_everything(client: Client, project: Project) -> list[dict[str, Any]]:
    migrate(client)
    # Twice, under other names: the copies are duplicates, the dead letters are not.
    source = MemorySource({"one": WITH_ALL_CANARIES, "two": WITH_ALL_CANARIES})
    loader = make_loader(client, project, source)
    loader.run(max_bytes=2**40)
    failing = make_loader(client, project, MemorySource({"three": WITH_ALL_CANARIES}))
    with pytest.raises(DatabaseError):
        FailsWhileLanding(**vars(failing)).run(max_bytes=2**40)
    for table in ("raw.product_telemetry_events_storage", "raw.dead_letters"):
        client.command(f"OPTIMIZE TABLE {table} FINAL")
    client.command("SYSTEM FLUSH LOGS")
    return list(client.query("SELECT * FROM raw.dead_letters").named_results())


# -- what lies on the disk -----------------------------------------------------------------------


@pytest.mark.parametrize("control", [CONTROL_ROUTE, CONTROL_FEATURE])
def test_the_sweep_finds_what_is_stored(kept: Kept, control: str) -> None:
    assert kept.where(control.encode())


@pytest.mark.parametrize("place", CANARIES)
def test_a_personal_value_is_in_no_byte_of_the_warehouse(kept: Kept, place: str) -> None:
    canary = CANARIES[place].encode()

    assert kept.where(canary) == []
    assert canary not in kept.printed


@pytest.mark.parametrize("name", ["pseudonym", "event", "dead_letter"])
def test_a_key_is_in_no_byte_of_the_warehouse(kept: Kept, name: str) -> None:
    key = kept.key(name)
    purposes = ("organisation", "user", "session", "event_id", "payload", "nonce")
    for secret in (key.secret.hex(), *(key.derive(purpose) for purpose in purposes)):
        for form in (secret.encode(), secret.upper().encode(), bytes.fromhex(secret)):
            assert kept.where(form) == []
        assert secret.encode() not in kept.printed


# -- dead letters --------------------------------------------------------------------------------


def _opened(key: Key, letter: dict[str, Any]) -> str:
    cipher = AESGCM(bytes.fromhex(key.derive("payload")))
    return cipher.decrypt(
        _bytes(letter["payload_nonce"]),
        _bytes(letter["payload_encrypted"]),
        str(letter["batch_id"]).encode(),
    ).decode()


def _bytes(text: str | bytes) -> bytes:
    # The driver gives strings that are no UTF-8 as hex.
    if isinstance(text, bytes):
        return text
    try:
        return bytes.fromhex(text)
    except ValueError:
        return text.encode()


def test_dead_letters_open_with_their_key(kept: Kept) -> None:
    opened = {letter["reason"]: _opened(kept.key("dead_letter"), letter) for letter in kept.letters}

    assert set(opened) == REASONS
    for place, reason in (
        ("in a line that is no JSON", "undecodable"),
        ("as an unknown event's name", "unknown_event"),
        ("as a raw id", "raw_identifier"),
        ("in a value that is not allowed", "invalid_attribute"),
        ("as an event id", "event_id_conflict"),
    ):
        assert CANARIES[place] in opened[reason]


def test_dead_letters_open_with_no_other_key_and_in_no_other_batch(kept: Kept) -> None:
    key = kept.key("dead_letter")
    for letter in kept.letters:
        with pytest.raises(InvalidTag):
            _opened(kept.key("pseudonym"), letter)
        with pytest.raises(InvalidTag):
            _opened(key, letter | {"batch_id": letter["batch_id"] + 1})


def test_dead_letters_name_their_key(kept: Kept) -> None:
    assert {letter["payload_key_id"] for letter in kept.letters} == {"1"}


def test_no_nonce_is_used_twice(kept: Kept) -> None:
    nonces = [_bytes(letter["payload_nonce"]) for letter in kept.letters]

    assert len(nonces) == 10, "the same five lines came twice"
    assert len(set(nonces)) == len(nonces)
    assert {len(nonce) for nonce in nonces} == {12}


def test_an_attribute_that_must_not_be_stored_is_not_even_in_a_dead_letter(kept: Kept) -> None:
    for letter in kept.letters:
        assert CANARIES["in user.email"] not in _opened(kept.key("dead_letter"), letter)


def test_dead_letters_name_a_person_by_pseudonym_only(kept: Kept) -> None:
    pseudonym = _pseudonym(kept.key("pseudonym"), "user", EDGE_USER)
    by_reason = {letter["reason"]: letter for letter in kept.letters}

    assert by_reason["unknown_event"]["anonymous_user_id"] == pseudonym
    assert by_reason["invalid_attribute"]["anonymous_user_id"] == pseudonym
    assert by_reason["raw_identifier"]["anonymous_user_id"] == 0
    assert by_reason["unknown_event"]["event_name"] == ""
    assert by_reason["invalid_attribute"]["event_name"] == "feature_viewed"


# -- pseudonyms ----------------------------------------------------------------------------------


def _pseudonym(key: Key, kind: str, edge_id: str) -> int:
    """HMAC-SHA256 under a sub-key of the kind, the first 8 bytes, little endian."""
    sub_key = hmac.new(key.secret, kind.encode(), hashlib.sha256).hexdigest()
    digest = hmac.new(sub_key.encode(), edge_id.encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "little")


@pytest.fixture(scope="module")
def landed(shared_client: Client, shared_project: Project) -> dict[str, Outcome]:
    same = edge("any", 1)
    source = MemorySource(
        {
            "ordinary": line(record("page_viewed", common(7), HOUR_AGO)),
            "one id for all": line(
                record(
                    "page_viewed",
                    common(organisation__id=same, enduser__pseudo__id=same, session__id=same),
                    HOUR_AGO,
                )
            ),
            "user.id": line(
                record(
                    "page_viewed",
                    common(enduser__pseudo__id=None, user__id=edge("user", 7)),
                    HOUR_AGO,
                )
            ),
        }
    )
    make_loader(shared_client, shared_project, source).run(max_bytes=2**40)
    return outcomes(shared_client)


def test_pseudonyms_are_what_an_independent_hmac_says(
    landed: dict[str, Outcome], shared_project: Project
) -> None:
    key = read_key("pseudonym", shared_project.keys_dir)
    event = landed["ordinary"].event

    assert event["anonymous_user_id"] == _pseudonym(key, "user", edge("user", 7))
    assert event["session_id"] == _pseudonym(key, "session", edge("session", 7))
    assert event["org_id_hash"] == _pseudonym(key, "organisation", edge("organisation", 1))
    assert event["pseudonym_key_id"] == key.key_id


def test_a_person_an_organisation_and_a_session_with_one_id_share_no_pseudonym(
    landed: dict[str, Outcome],
) -> None:
    event = landed["one id for all"].event

    assert len({event["anonymous_user_id"], event["session_id"], event["org_id_hash"]}) == 3


def test_a_person_has_one_pseudonym_whichever_attribute_names_them(
    landed: dict[str, Outcome],
) -> None:
    users = {landed[name].event["anonymous_user_id"] for name in ("ordinary", "user.id")}

    assert len(users) == 1


def test_another_key_gives_another_pseudonym(shared_project: Project) -> None:
    key = read_key("pseudonym", shared_project.keys_dir)
    other = Key(key.key_id, bytes(32))

    assert _pseudonym(key, "user", EDGE_USER) != _pseudonym(other, "user", EDGE_USER)


# -- replay --------------------------------------------------------------------------------------


def test_an_opened_dead_letter_is_judged_as_it_was(
    kept: Kept, shared_client: Client, shared_project: Project
) -> None:
    replayable = {"unknown_event", "raw_identifier", "invalid_attribute", "undecodable"}
    letters = {row["reason"]: row for row in kept.letters if row["reason"] in replayable}
    source = MemorySource(
        {
            reason: _opened(kept.key("dead_letter"), letter).encode() + b"\n"
            for reason, letter in letters.items()
        },
        name="replay",
    )
    make_loader(shared_client, shared_project, source).run(max_bytes=2**40)

    landed = outcomes(shared_client)
    for reason, letter in letters.items():
        (again,) = landed[reason].letters
        assert again["reason"] == reason
        for column in ("field", "event_name", "occurred_at"):
            if reason != "undecodable":
                assert again[column] == letter[column], (reason, column)


def test_a_conflict_can_be_understood_from_its_dead_letter(kept: Kept) -> None:
    (letter, _) = [row for row in kept.letters if row["reason"] == "event_id_conflict"]

    opened = json.loads(_opened(kept.key("dead_letter"), letter))

    (record,) = opened["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert record["eventName"] == "page_viewed"
    assert record["timeUnixNano"] == str(HOUR_AGO * 1_000_000)
