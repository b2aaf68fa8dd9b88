"""What leaves, under which ids, and what never does."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from exporting import (
    API_KEY,
    INSERT_KEY,
    NOON,
    PATIENT,
    Event,
    Receiver,
    Warehouse,
    connect,
    export,
    export_through,
)

from telemetry_pipeline.destinations.amplitude import Amplitude, AmplitudeSettings
from telemetry_pipeline.destinations.base import Answer, NoAnswer, WireEvent
from telemetry_pipeline.destinations.export import amplitude_due, export_once, insert_id
from telemetry_pipeline.warehouse.client import Address

Server = Callable[..., AbstractContextManager[Receiver]]

USER, ORGANISATION, SESSION = 0xDEADBEEF_12345678, 0xFEEDFACE_87654321, 0xCAFEBABE_11223344
EVERYTHING = ("*",)
COPIED = (
    "destination, event_id, insert_id, device_id, user_id, organisation_id, occurred_at, "
    "batch_id, state, reason, request_id, erasure_epoch, deadline"
)


def test_an_event_arrives_once_with_random_ids_and_native_types(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    event = Event(
        user=USER,
        organisation=ORGANISATION,
        session=SESSION,
        route_pattern="/projects/:projectId",
        payload={"approvals": 2, "delayHours": 1.5, "flagChangeRequests": True},
    )
    warehouse.land([event])
    with amplitude_server() as receiver:
        report = export(warehouse, receiver)
        (stored,) = receiver.events()
    assert (report.due, report.accepted, report.waiting, report.requests) == (1, 1, 0, 1)
    assert stored["event_type"] == "change_request.created"
    assert stored["insert_id"] == insert_id(INSERT_KEY, event.event_id)
    assert stored["time"] == int(NOON.timestamp() * 1000)
    assert stored["event_properties"] == {
        "approvals": 2,
        "delayHours": 1.5,
        "flagChangeRequests": True,
        "route_pattern": "/projects/:projectId",
        "schema_version": "2026-05-telemetry-v1",
    }
    minted = "SELECT toString(subject_kind), destination_id FROM privacy.destination_ids"
    ids = {row[0]: row[1] for row in warehouse.rows(minted)}
    assert stored["user_id"] == stored["device_id"] == ids["user"]
    assert stored["groups"] == {"organisation": ids["organisation"]}


def test_one_person_is_one_user_over_runs_and_two_people_are_two(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    with amplitude_server() as receiver:
        for batch_id in (1, 2):
            warehouse.land([Event(user=USER), Event(user=USER + 1)], batch_id=batch_id)
            export(warehouse, receiver)
        users = [event["user_id"] for event in receiver.events()]
    assert len(users) == 4
    assert len(set(users)) == 2


def test_an_event_without_a_subject_gets_a_device_of_its_own(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(), Event(session=SESSION)])
    with amplitude_server() as receiver:
        export(warehouse, receiver)
        events = receiver.events()
    assert all("user_id" not in event for event in events)
    assert len({event["device_id"] for event in events}) == 2


def test_an_empty_allowlist_exports_nothing(warehouse: Warehouse, amplitude_server: Server) -> None:
    warehouse.land([Event(user=USER)])
    with amplitude_server() as receiver:
        report = export(warehouse, receiver, globs=())
        assert receiver.summary()["requests"] == 0
    assert (report.due, report.sent) == (0, 0)
    assert amplitude_due(warehouse.client, "amplitude", ()) == 0


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (("change_request.*",), {"change_request.created", "change_request.failed"}),
        (("change_request.created",), {"change_request.created"}),
        (("trial_?tarted", "*.failed"), {"trial_started", "change_request.failed"}),
        (("change_request",), set()),
        (("*",), {"change_request.created", "change_request.failed", "change_requestXcreated",
                  "trial_started"}),
    ],
)  # fmt: skip
def test_only_names_that_match_the_allowlist_leave(
    warehouse: Warehouse, amplitude_server: Server, globs: Sequence[str], expected: set[str]
) -> None:
    names = (
        *("change_request.created", "change_request.failed"),
        *("change_requestXcreated", "trial_started"),
    )
    warehouse.land([Event(name=name, user=USER) for name in names])
    with amplitude_server() as receiver:
        export(warehouse, receiver, globs=globs)
        assert {event["event_type"] for event in receiver.events()} == expected


def test_a_widened_allowlist_also_sends_what_came_before(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER), Event(name="trial_started", user=USER)])
    with amplitude_server() as receiver:
        assert export(warehouse, receiver).accepted == 1
        assert export(warehouse, receiver, globs=EVERYTHING).accepted == 1
        assert receiver.summary()["stored"] == 2


def test_a_batch_leaves_only_after_its_result(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    with amplitude_server() as receiver:
        warehouse.land([Event(user=USER)], batch_id=1)
        warehouse.land([Event(user=USER)], batch_id=2, settle=False)
        assert export(warehouse, receiver).accepted == 1
        # The result comes after the batch's last touch, and after a run that saw the day done.
        warehouse.settle(2, 1)
        assert export(warehouse, receiver).accepted == 1
        assert receiver.summary()["stored"] == 2


def test_a_batch_with_a_lower_number_that_lands_late_is_not_skipped(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    with amplitude_server() as receiver:
        warehouse.land([Event(user=USER)], batch_id=7)
        export(warehouse, receiver)
        warehouse.land([Event(user=USER, occurred_at=NOON - timedelta(days=9))], batch_id=3)
        warehouse.land([Event(user=USER)], batch_id=4)
        assert export(warehouse, receiver).accepted == 2
        assert receiver.summary()["stored"] == 3


def test_a_run_with_nothing_new_sends_nothing(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER)])
    with amplitude_server() as receiver:
        export(warehouse, receiver)
        assert export(warehouse, receiver).requests == 0


def test_a_healed_batch_is_not_exported_a_second_time(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    event = Event(user=USER)
    lost = Event(user=USER)
    warehouse.land([event])
    with amplitude_server() as receiver:
        export(warehouse, receiver)
        warehouse.client.command("TRUNCATE TABLE raw.product_telemetry_events_storage")
        warehouse.land([event, lost], settle=False)
        warehouse.touch(NOON, batch_id=1)
        report = export(warehouse, receiver)
        assert (report.due, report.sent) == (1, 1)
        assert receiver.summary()["duplicates"] == 0


def test_two_stored_copies_of_an_event_leave_as_one(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    event = Event(user=USER)
    warehouse.land([event], batch_id=1)
    warehouse.land([replace(event, user=USER + 1)], batch_id=2)
    with amplitude_server() as receiver:
        report = export(warehouse, receiver)
        assert receiver.summary()["duplicates"] == 0
    assert (report.due, report.sent, report.accepted, report.waiting) == (1, 1, 1, 0)


# -- consent and erasure ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "kind", "subject", "reason"),
    [
        ("withdraw", "user", USER, "consent"),
        ("withdraw", "session", SESSION, "consent"),
        ("erase", "user", USER, "erasure"),
        ("erase", "session", SESSION, "erasure"),
        ("erase", "organisation", ORGANISATION, "erasure"),
    ],
)
def test_events_of_whoever_objected_stay(
    warehouse: Warehouse,
    amplitude_server: Server,
    table: str,
    kind: str,
    subject: int,
    reason: str,
) -> None:
    theirs = Event(user=USER, session=SESSION, organisation=ORGANISATION)
    warehouse.land([theirs, Event(user=USER + 1, session=SESSION + 1), Event()])
    getattr(warehouse, table)(kind, subject)
    with amplitude_server() as receiver:
        report = export(warehouse, receiver)
        sent = {event["insert_id"] for event in receiver.events()}
    assert insert_id(INSERT_KEY, theirs.event_id) not in sent
    assert (report.accepted, report.waiting) == (2, 0)
    assert dict(report.withheld) == {reason: 1}
    assert amplitude_due(warehouse.client, "amplitude", EVERYTHING) == 2
    minted = warehouse.rows("SELECT subject FROM privacy.destination_ids")
    assert (subject,) not in minted


@pytest.mark.parametrize("objects", ["withdraw", "erase"])
def test_an_objection_during_the_run_holds_from_the_next_request_on(
    warehouse: Warehouse, amplitude_server: Server, objects: str
) -> None:
    warehouse.land([Event(user=USER, occurred_at=NOON + timedelta(seconds=n)) for n in range(10)])

    class Objecting(Amplitude):
        def send(self, events: Sequence[WireEvent]) -> Answer | NoAnswer:
            answer = super().send(events)
            getattr(warehouse, objects)("user", USER)
            return answer

    with amplitude_server() as receiver:
        settings = AmplitudeSettings(
            api_key=API_KEY, endpoint=receiver.endpoint, events_per_request=4
        )
        with Objecting(settings) as amplitude:
            report = export_through(warehouse, amplitude)
        assert receiver.summary()["stored"] == 4
    assert (report.due, report.accepted, report.waiting) == (10, 4, 0)
    assert report.withheld_by_consent + report.withheld_by_erasure == 6


# -- what is frozen ---------------------------------------------------------------------------


def test_a_resend_repeats_the_ids_and_the_time_of_the_first_send(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    event = Event(user=USER, organisation=ORGANISATION)
    warehouse.land([event])
    with amplitude_server(script=("500_accepted",)) as receiver:
        once = replace(PATIENT, failures_before_stop=1)
        assert export(warehouse, receiver, policy=once).waiting == 1
        # A key, an id or a time that changes later must not make a second event of it.
        warehouse.client.command("TRUNCATE TABLE privacy.destination_ids")
        warehouse.client.command("TRUNCATE TABLE raw.product_telemetry_events_storage")
        warehouse.land([replace(event, occurred_at=NOON + timedelta(hours=1))], settle=False)
        with Amplitude(AmplitudeSettings(api_key=API_KEY, endpoint=receiver.endpoint)) as amplitude:
            report = export_once(
                warehouse.client,
                amplitude,
                name="amplitude",
                globs=EVERYTHING,
                insert_key=bytes(32),
                policy=PATIENT,
            )
        assert (report.sent, report.resent, report.accepted) == (1, 1, 1)
        assert receiver.summary()["duplicates"] == 1
        assert receiver.summary()["stored"] == 1


def test_an_event_in_doubt_for_longer_than_the_destination_remembers_is_not_sent_again(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER)])
    with amplitude_server(script=("500_accepted", "503")) as receiver:
        once = replace(PATIENT, failures_before_stop=1)
        export(warehouse, receiver, policy=once)
        export(warehouse, receiver, policy=once)
        # 503 says that nothing was taken, but the 500 before it is still unexplained.
        (in_doubt,) = warehouse.rows("SELECT in_doubt_since FROM ops.export_outbox FINAL")
        assert isinstance(in_doubt[0], datetime)
        assert in_doubt[0].year > 2000
        warehouse.client.command(
            f"INSERT INTO ops.export_outbox ({COPIED}, in_doubt_since, recorded_at) "
            f"SELECT {COPIED}, now64(6) - INTERVAL 7 DAY, now64(6) FROM ops.export_outbox FINAL"
        )
        report = export(warehouse, receiver)
        assert (report.due, report.sent) == (0, 0)
        assert dict(report.withheld) == {"in_doubt": 1}


def test_of_two_ids_minted_for_one_subject_the_first_committed_stays(
    warehouse: Warehouse,
) -> None:
    late, early = datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    for name, at in (("first", late), ("second", early)):
        warehouse.client.insert("privacy.destination_ids", [["amplitude", "user", USER, name, at]])
    ids = "SELECT destination_id FROM privacy.current_destination_ids"
    assert warehouse.rows(ids) == [("first",)]
    warehouse.client.command("OPTIMIZE TABLE privacy.destination_ids FINAL")
    assert warehouse.rows(ids) == [("first",)]


def test_a_sending_written_late_by_another_exporter_does_not_make_an_accepted_event_due(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER)])
    with amplitude_server() as receiver:
        export(warehouse, receiver)
        copied = COPIED.replace(" state,", "")
        warehouse.client.command(
            f"INSERT INTO ops.export_outbox ({copied}, state, in_doubt_since, recorded_at) "
            f"SELECT {copied}, 'sending', now64(6), now64(6) + INTERVAL 1 HOUR "
            "FROM ops.export_outbox FINAL"
        )
        assert warehouse.states() == {"accepted": 1}
        warehouse.touch(NOON, batch_id=1)
        assert export(warehouse, receiver).due == 0


def test_exporters_at_the_same_time_repeat_no_event_and_split_no_person(
    warehouse: Warehouse, amplitude_server: Server, migrated: Address
) -> None:
    warehouse.land([Event(user=USER + n % 20) for n in range(400)])
    with amplitude_server() as receiver:
        others = [Warehouse(connect(migrated)) for _ in range(4)]
        threads = [
            threading.Thread(
                target=export, args=(other, receiver), kwargs={"events_per_request": 50}
            )
            for other in others
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = receiver.events()
    assert len(events) == len({event["insert_id"] for event in events}) == 400
    assert len({event["user_id"] for event in events}) == 20
    assert warehouse.states() == {"accepted": 400}


# -- what never leaves ------------------------------------------------------------------------


@contextmanager
def recording() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers 200 and keeps every byte of every request."""
    requests: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            requests.append(self.requestline.encode() + bytes(self.headers) + body)
            answer = b'{"code":200}'
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/2/httpapi", requests
        finally:
            server.shutdown()
            thread.join()


def test_no_pseudonym_event_id_or_batch_id_leaves_and_no_log_shows_an_id_or_the_key(
    warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    batch_id = 0xABCDEF01_23456789
    events = [
        Event(user=USER + n, organisation=ORGANISATION + n, session=SESSION + n, event_id=uuid4())
        for n in range(20)
    ]
    warehouse.land([*events, Event()], batch_id=batch_id)
    caplog.set_level(logging.DEBUG)
    with (
        recording() as (endpoint, requests),
        Amplitude(AmplitudeSettings(endpoint=endpoint, api_key=API_KEY)) as amplitude,
    ):
        export_through(warehouse, amplitude)
    left = b"".join(requests).decode().lower()
    assert json.loads(requests[0][requests[0].index(b'{"api_key') :])["api_key"] == API_KEY
    secrets = [batch_id]
    for event in events:
        assert str(event.event_id) not in left
        assert event.event_id.hex not in left
        assert str(event.event_id.int) not in left
        secrets += [event.user, event.organisation, event.session]
    for number in secrets:
        assert str(number) not in left
        assert f"{number:016x}" not in left
        assert number.to_bytes(8, "little").hex() not in left
    for ours in ("events.jsonl", "app_events", "batch", "pseudonym"):
        assert ours not in left
    minted = warehouse.rows("SELECT destination_id FROM privacy.destination_ids")
    assert len(minted) == 40
    for (name,) in [(API_KEY,), *minted]:
        assert str(name) not in caplog.text


def test_no_personal_value_reaches_a_mutation(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    warehouse.land([Event(user=USER)])
    with amplitude_server() as receiver:
        export(warehouse, receiver)
    tables = "('export_outbox', 'export_marks', 'destination_ids')"
    assert warehouse.rows(f"SELECT command FROM system.mutations WHERE table IN {tables}") == []


def test_the_total_due_counts_what_was_accepted_and_what_is_still_to_go(
    warehouse: Warehouse, amplitude_server: Server
) -> None:
    due = ("change_request.*",)
    warehouse.land([Event(user=USER), Event(user=USER), Event(name="trial_started")])
    assert amplitude_due(warehouse.client, "amplitude", due) == 2
    with amplitude_server() as receiver:
        export(warehouse, receiver, globs=due)
        assert amplitude_due(warehouse.client, "amplitude", due) == 2
        assert receiver.summary()["events"] == 2
    warehouse.land([Event(user=USER)], batch_id=2)
    assert amplitude_due(warehouse.client, "amplitude", due) == 3
