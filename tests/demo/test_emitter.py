"""What emit() writes is what its manifest says, judged by an independent reading of the sink."""

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sink_oracle
from emitted import EDGE_KEY, NOW, Emission
from opentelemetry.proto_json.logs.v1.logs import LogsData

from telemetry_pipeline.demo.emitter import EmissionManifest, emit, emit_live

EmitSmall = Callable[..., tuple[Path, EmissionManifest]]
FEATURE_FLAGS = ("feature_flag.change_requests", "feature_flag.scheduled_changes")


def content(sink: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sink.iterdir()}


def test_the_same_seed_writes_the_same_bytes(emit_small: EmitSmall) -> None:
    first, first_manifest = emit_small("first")
    second, second_manifest = emit_small("second")
    other, _ = emit_small("other", seed=8)

    assert content(first) == content(second)
    assert first_manifest == second_manifest
    assert content(first) != content(other)


def test_every_outcome_of_the_manifest_is_what_an_independent_judge_counts(
    emission: Emission,
) -> None:
    manifest, verdicts = emission.manifest, emission.verdicts

    assert manifest.emitted == verdicts.emitted
    assert manifest.accepted == len(verdicts.accepted)
    assert manifest.duplicates == verdicts.duplicates
    assert manifest.rejected == verdicts.rejected
    assert manifest.dropped == verdicts.dropped
    assert manifest.unknown_attributes == verdicts.unknown_attributes


def test_the_judge_agrees_for_a_small_emission_and_another_seed(
    emit_small: EmitSmall, catalogue: sink_oracle.Catalogue
) -> None:
    sink, manifest = emit_small("sink", seed=11)
    verdicts = sink_oracle.judge(sink, NOW, catalogue)

    assert (manifest.accepted, manifest.duplicates) == (
        len(verdicts.accepted),
        verdicts.duplicates,
    )
    assert (manifest.rejected, manifest.dropped) == (verdicts.rejected, verdicts.dropped)


def test_nothing_is_lost_between_the_outcomes(emission: Emission) -> None:
    manifest = emission.manifest

    assert manifest.emitted == (
        manifest.accepted
        + manifest.duplicates
        + sum(manifest.rejected.values())
        + sum(manifest.dropped.values())
    )


def test_every_reason_and_every_kind_of_defect_occurs_at_least_20_times(
    emission: Emission,
) -> None:
    manifest = emission.manifest

    assert manifest.rejected.keys() == {
        "undecodable",
        "not_logs",
        "unknown_event",
        "raw_identifier",
        "invalid_attribute",
        "missing_attribute",
        "event_id_conflict",
    }
    assert manifest.dropped.keys() == {
        "not_an_event",
        "consent_denied",
        "consent_absent",
        "expired",
    }
    assert min(manifest.kinds.values()) >= 20
    assert len(manifest.kinds) > 20


def test_about_one_event_in_a_hundred_arrives_twice_at_once_or_much_later(
    emission: Emission,
) -> None:
    gaps = [second - first for first, second in repeated_line_numbers(emission.sink)]

    assert emission.manifest.duplicates / emission.manifest.accepted == pytest.approx(
        0.01, abs=0.003
    )
    assert sum(gap == 0 for gap in gaps) > 0.3 * len(gaps)
    assert sum(gap >= 3 for gap in gaps) > 0.3 * len(gaps)


def test_about_two_in_a_hundred_arrive_hours_or_days_late(emission: Emission) -> None:
    delays = [
        (record.observed_ns - record.time_ns) / 3.6e12 for record in emission.verdicts.accepted
    ]
    late = sum(delay >= 1 for delay in delays)

    assert late / len(delays) == pytest.approx(0.02, abs=0.005)
    assert max(delays) > 48
    assert min(delays) >= 0
    # The manifest counts good events; copies of late ones with a defect are late as well.
    assert emission.manifest.late <= late <= emission.manifest.late + 20


def test_records_reach_the_sink_in_the_order_in_which_they_were_observed(
    emission: Emission,
) -> None:
    latest = 0
    for line in sink_oracle.lines_of(emission.sink):
        records = sink_oracle.records_of(line)
        if isinstance(records, list):
            # One resource after the other within a line, so only the lines are in order.
            assert min(record.observed_ns for record in records) >= latest
            latest = max(record.observed_ns for record in records)


def test_nothing_happened_or_was_observed_after_now(emission: Emission) -> None:
    now_ns = NOW.timestamp() * 1e9

    for record in emission.verdicts.accepted:
        assert record.time_ns <= record.observed_ns <= now_ns


def test_every_accepted_event_names_consent_and_hashed_ids_and_comes_from_a_known_service(
    emission: Emission,
) -> None:
    for record in emission.verdicts.accepted:
        assert record.values["consent.analytics"] == "granted"
        assert record.service in ("web-app", "core-api")
        for key in ("organisation.id", "enduser.pseudo.id", "session.id"):
            assert re.fullmatch(r"e1_[0-9a-f]{64}", record.values[key])


def test_good_events_carry_nothing_that_the_catalogue_does_not_give_them(
    emission: Emission, catalogue: sink_oracle.Catalogue
) -> None:
    strange = Counter(
        key
        for record in emission.verdicts.accepted
        for key in record.values.keys() - catalogue.references(str(record.name)).keys()
    )

    assert strange.keys() == {"browser.language", "customer.contact"}


def test_most_events_name_their_schema_version_and_some_do_not(emission: Emission) -> None:
    named = sum("schema.version" in record.values for record in emission.verdicts.accepted)

    assert 0.9 < named / len(emission.verdicts.accepted) < 1


def test_front_end_events_name_their_page_and_every_event_of_the_catalogue_occurs(
    emission: Emission, catalogue: sink_oracle.Catalogue
) -> None:
    names = {record.name for record in emission.verdicts.accepted}

    assert names == catalogue.events.keys()
    for record in emission.verdicts.accepted:
        if record.service == "web-app":
            assert "url.template" in record.values


def test_an_organisations_flags_are_the_same_on_all_its_events(emission: Emission) -> None:
    flags: dict[str, set[tuple[bool, bool]]] = {}
    for record in emission.verdicts.accepted:
        if record.name == "page_viewed":
            flags.setdefault(record.values["organisation.id"], set()).add(
                (record.values[FEATURE_FLAGS[0]], record.values[FEATURE_FLAGS[1]])
            )

    assert all(len(seen) == 1 for seen in flags.values())
    assert len({next(iter(seen)) for seen in flags.values()}) > 1


def test_every_line_of_logs_is_read_back_by_the_official_decoder(emission: Emission) -> None:
    decoded = 0
    for line in sink_oracle.lines_of(emission.sink):
        if not isinstance(sink_oracle.records_of(line), str):
            data = LogsData.from_json(line)
            decoded += sum(
                len(in_scope.log_records)
                for in_resource in data.resource_logs
                for in_scope in in_resource.scope_logs
            )

    broken = emission.manifest.rejected["undecodable"] + emission.manifest.rejected["not_logs"]
    assert decoded == emission.manifest.emitted - broken


def test_every_canary_is_in_the_sink_once_and_no_raw_id_is_in_an_accepted_event(
    emission: Emission,
) -> None:
    everything = b"".join(content(emission.sink).values())
    found = Counter(re.findall(rb"canary-\d+@example\.com", everything))

    assert found == {canary.encode(): 1 for canary in emission.manifest.canaries}
    assert len(emission.manifest.canaries) > 60
    for record in emission.verdicts.accepted:
        assert not re.search(r"(user|org|session)-\d", str(record.values))


def test_progress_runs_from_the_first_batch_to_everything(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = emit(
        tmp_path,
        "1",
        EDGE_KEY,
        NOW,
        users=20,
        organisations=4,
        events=1000,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert seen == sorted(seen)
    assert seen[-1] == (manifest.emitted, manifest.emitted)


def test_a_naive_now_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timezone-aware"):
        emit(tmp_path, "1", EDGE_KEY, datetime(2026, 11, 24), users=20, events=1000)


def test_live_events_are_appended_to_the_sink_and_all_acceptable(
    emit_small: EmitSmall, catalogue: sink_oracle.Catalogue
) -> None:
    sink, manifest = emit_small("sink")
    clock = Clock(NOW)

    emitted = emit_live(
        sink,
        "1",
        EDGE_KEY,
        stop=lambda: clock.now >= NOW + timedelta(minutes=2),
        events_per_second=5,
        users=50,
        organisations=8,
        clock=lambda: clock.now,
        sleep=clock.sleep,
    )

    later = sink_oracle.judge(sink, NOW, catalogue)
    assert emitted == pytest.approx(600, abs=2)
    assert len(later.accepted) == manifest.accepted + emitted
    assert later.rejected == manifest.rejected
    fresh = later.accepted[-emitted:]
    assert all(NOW.timestamp() <= record.time_ns / 1e9 for record in fresh)
    known = {record.values["enduser.pseudo.id"] for record in later.accepted[:-emitted]}
    assert {record.values["enduser.pseudo.id"] for record in fresh} & known


def test_what_happened_before_a_live_run_was_interrupted_is_in_the_sink(
    tmp_path: Path, catalogue: sink_oracle.Catalogue
) -> None:
    clock = Clock(NOW, interrupt_after=7)

    with pytest.raises(KeyboardInterrupt):
        emit_live(
            tmp_path,
            "1",
            EDGE_KEY,
            stop=lambda: False,
            users=50,
            organisations=8,
            clock=lambda: clock.now,
            sleep=clock.sleep,
        )

    assert len(sink_oracle.judge(tmp_path, NOW, catalogue).accepted) == 7


class Clock:
    """A clock that only moves while somebody sleeps, and may ring in the middle of it."""

    def __init__(self, now: datetime, interrupt_after: int | None = None) -> None:
        self.now = now.astimezone(UTC)
        self._sleeps_left = interrupt_after

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        if self._sleeps_left is not None:
            self._sleeps_left -= 1
            if self._sleeps_left == 0:
                raise KeyboardInterrupt


def repeated_line_numbers(sink: Path) -> list[tuple[int, int]]:
    """(line of the first, line of the second) for every event that is there twice."""
    first_lines: dict[tuple[str, str | None, int], int] = {}
    pairs = []
    for number, line in enumerate(sink_oracle.lines_of(sink)):
        records = sink_oracle.records_of(line)
        for record in records if isinstance(records, list) else []:
            identity = (record.event_id, record.name, record.time_ns)
            if identity in first_lines:
                pairs.append((first_lines[identity], number))
            else:
                first_lines[identity] = number
    return pairs
