"""An edge id hides the id, keeps kinds apart, and names its key."""

import hashlib
import hmac
import re

from telemetry_pipeline.identity.edge import edge_id

KEY = bytes(range(32))


def test_an_edge_id_names_its_key_and_holds_an_hmac_of_kind_and_id() -> None:
    expected = hmac.new(KEY, b"user:ada@example.com", hashlib.sha256).hexdigest()

    assert edge_id("2026a", KEY, "user", "ada@example.com") == f"e2026a_{expected}"


def test_an_edge_id_has_the_form_that_ingest_takes() -> None:
    assert re.fullmatch(r"e1_[0-9a-f]{64}", edge_id("1", KEY, "session", "søster"))


def test_the_same_raw_id_is_another_edge_id_for_another_kind_or_key() -> None:
    ids = {
        edge_id("1", KEY, "user", "42"),
        edge_id("1", KEY, "organisation", "42"),
        edge_id("1", KEY, "session", "42"),
        edge_id("1", bytes(32), "user", "42"),
    }

    assert len(ids) == 4
