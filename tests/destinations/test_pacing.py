"""The limits of a destination hold, and nobody waits for somebody else's pause."""

from __future__ import annotations

from telemetry_pipeline.destinations.base import Limits, WireEvent
from telemetry_pipeline.destinations.pacing import Pacer

OVERHEAD = 100


def pacer(
    *,
    events: int = 2000,
    size: int = 1_000_000,
    per_second: int | None = None,
    per_subject: int | None = None,
) -> Pacer:
    return Pacer(Limits(events, size, per_second, per_subject), OVERHEAD)


def events(subject: str, count: int, size: int = 50) -> list[WireEvent]:
    return [WireEvent(f"{subject}-{n}", subject, subject, b"x" * size) for n in range(count)]


def drain(queue: Pacer) -> list[tuple[float, list[WireEvent]]]:
    """Send everything with a clock that jumps to when something may go."""
    now, sent = 0.0, []
    while True:
        taken = queue.take(now)
        if taken:
            sent.append((now, taken))
            queue.sent(taken, now)
            continue
        wake = queue.next_time()
        if wake is None:
            return sent
        assert wake > now
        now = wake


def test_no_request_is_over_either_limit() -> None:
    queue = pacer(events=7, size=1000)
    queue.add(events("a", 40, size=120) + events("b", 3, size=10), 0.0)
    sent = [taken for _, taken in drain(queue)]
    assert sum(len(taken) for taken in sent) == 43
    assert max(len(taken) for taken in sent) <= 7
    assert max(OVERHEAD + sum(len(e.body) + 1 for e in taken) for taken in sent) <= 1000


def test_one_subject_never_sends_more_than_its_limit_in_any_second() -> None:
    queue = pacer(events=100, per_subject=25)
    queue.add(events("busy", 120) + events("calm", 10), 0.0)
    sent = drain(queue)
    moments = [at for at, taken in sent for event in taken if event.subject == "busy"]
    assert len(moments) == 120
    for start in moments:
        assert sum(start <= at < start + 1 for at in moments) <= 25
    assert moments[-1] < 6


def test_the_rate_over_all_subjects_is_kept() -> None:
    queue = pacer(per_second=100)
    queue.add([event for n in range(500) for event in events(f"subject-{n}", 1)], 0.0)
    moments = [at for at, taken in drain(queue) for _ in taken]
    for start in moments:
        assert sum(start <= at < start + 1 for at in moments) <= 100
    assert moments[-1] <= 4.01


def test_a_subjects_events_keep_their_order_also_when_put_back() -> None:
    queue = pacer(events=10)
    queue.add(events("a", 30), 0.0)
    queue.put_back(queue.take(0.0))
    order = [event.insert_id for _, taken in drain(queue) for event in taken]
    assert order == [f"a-{n}" for n in range(30)]
    assert queue.waiting == 0


def test_a_paused_subject_holds_up_nobody_else() -> None:
    queue = pacer(events=10)
    queue.add(events("slow", 5) + events("fast", 5), 0.0)
    queue.put_back(queue.take(0.0))
    queue.pause({"slow"}, until=30.0)
    assert {event.subject for event in queue.take(0.0)} == {"fast"}
    assert queue.take(29.9) == []
    assert queue.next_time() == 30.0
    assert len(queue.take(30.0)) == 5


def test_a_subject_set_aside_is_not_sent_but_still_counted_as_waiting() -> None:
    queue = pacer()
    queue.add(events("over-quota", 5) + events("fine", 5), 0.0)
    queue.set_aside({"over-quota"})
    assert {event.subject for _, taken in drain(queue) for event in taken} == {"fine"}
    queue.add(events("over-quota", 2), 0.0)
    assert queue.take(100.0) == []
    assert queue.waiting == 7


def test_a_pause_of_all_holds_everything() -> None:
    queue = pacer()
    queue.add(events("a", 1), 0.0)
    queue.pause_all(5.0)
    assert queue.take(4.9) == []
    assert queue.next_time() == 5.0
    assert len(queue.take(5.0)) == 1


def test_after_a_request_that_was_too_large_the_next_are_half_its_size() -> None:
    queue = pacer(events=8)
    queue.add(events("a", 8, size=100), 0.0)
    whole = queue.take(0.0)
    queue.shrink(whole)
    queue.put_back(whole)
    half = queue.take(0.0)
    assert 0 < len(half) <= 4
    queue.shrink(half)
    queue.put_back(half)
    assert 0 < len(queue.take(0.0)) <= 2


def test_an_event_larger_than_a_shrunken_limit_goes_alone() -> None:
    queue = pacer(size=300)
    queue.add(events("a", 3, size=500), 0.0)
    assert [len(taken) for _, taken in drain(queue)] == [1, 1, 1]


def test_a_subject_is_forgotten_once_idle_but_not_while_its_last_second_counts() -> None:
    queue = pacer(per_subject=25)
    queue.add(events("a", 25), 0.0)
    queue.sent(queue.take(0.0), 0.0)
    queue.add(events("a", 25), 0.5)
    assert queue.take(0.5) == []
    assert len(queue.take(1.1)) == 25
    queue.add(events("b", 1), 100.0)
    assert set(queue._lines) == {"b"}
