"""The abort token, the event and its spans, without a worker."""

import asyncio
import logging
import threading
import time

import pytest

from queue_kit import AbortToken, Cancelled, DeadlineExceeded, Event, LeaseLost, ShuttingDown
from queue_kit.event import Span
from tests.support import PATIENCE

REASONS = [DeadlineExceeded("late"), LeaseLost("gone"), ShuttingDown("stop"), Cancelled("asked")]


# --- the token --------------------------------------------------------------------------------------------------------


def test_a_new_token_lets_the_job_run():
    token = AbortToken()
    token.raise_if_aborted()
    assert (token.aborted, token.reason, token.deadline) == (False, None, None)


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: type(reason).__name__)
def test_an_aborted_token_raises_its_reason(reason):
    token = AbortToken()
    assert token.abort(reason) is True
    assert token.aborted
    for _ in range(2):
        with pytest.raises(type(reason)) as raised:
            token.raise_if_aborted()
        assert raised.value is token.reason is reason


def test_the_first_reason_stays():
    token = AbortToken()
    token.abort(REASONS[0])
    assert token.abort(REASONS[1]) is False
    assert token.reason is REASONS[0]
    with pytest.raises(DeadlineExceeded):
        token.raise_if_aborted()


def test_the_deadline_is_the_seconds_left_and_never_below_zero(frozen):
    token = AbortToken(frozen.now + 30)
    assert token.deadline == 30
    frozen.forward(12.5)
    assert token.deadline == 17.5
    frozen.forward(100)
    assert token.deadline == 0
    assert not token.aborted  # whoever runs the job decides that it is over


async def test_wait_wakes_all_who_wait_with_the_reason_and_later_ones_at_once():
    token = AbortToken()
    waiting = [asyncio.create_task(token.wait()) for _ in range(4)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    await asyncio.wait({waiting[0]})
    waiting[1].cancel()  # and does not know it yet when the token is aborted
    token.abort(REASONS[3])
    assert await asyncio.wait_for(asyncio.gather(*waiting[2:], token.wait()), PATIENCE) == [REASONS[3]] * 3
    await asyncio.wait({waiting[1]})
    assert [task.cancelled() for task in waiting] == [True, True, False, False]


def test_a_thread_reads_the_token():
    token, started, seen = AbortToken(), threading.Event(), []

    def look():
        before = token.aborted
        started.set()
        while not token.aborted:
            pass
        with pytest.raises(ShuttingDown):
            token.raise_if_aborted()
        seen.append((before, token.reason))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    assert started.wait(PATIENCE)
    token.abort(REASONS[2])
    thread.join(PATIENCE)
    assert seen == [(False, REASONS[2])]


# --- the event --------------------------------------------------------------------------------------------------------


def by_start(event):
    event.start("again")


def by_child(event):
    event.child()


def by_span(event):
    with event.span("more"):
        pytest.fail("the span began")


@pytest.mark.parametrize("use", [by_start, by_child, by_span])
@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: type(reason).__name__)
def test_start_child_and_span_raise_the_reason_once_aborted(use, reason):
    event = Event()
    event.start("job")
    child = event.child()
    child.start("part")
    event.signal.abort(reason)
    for each in (event, child):
        with pytest.raises(type(reason)) as raised:
            use(each)
        assert raised.value is reason
    assert (event.spans.name, [part.name for part in event.spans.children]) == ("job", ["part"])


def test_spans_nest_and_are_timed_from_the_start_of_the_root(frozen):
    event = Event()
    frozen.forward(1)
    event.start("job")
    frozen.forward(1)
    with event.span("list") as outer:
        frozen.forward(2)
        with outer.span("query") as inner:
            frozen.forward(4)
            assert inner.signal is event.signal
    by_hand = event.child()
    by_hand.start("send")
    frozen.forward(8)
    by_hand.stop()
    assert event.spans.duration is None
    event.stop()
    assert event.spans == Span(
        "job", 1, 15, None, [Span("list", 2, 6, None, [Span("query", 4, 4)]), Span("send", 8, 8)]
    )
    assert by_hand.spans is event.spans.children[1]


def test_spans_side_by_side_belong_to_the_event_that_opened_them(frozen):
    event = Event()
    event.start("job")
    with event.span("first"):
        frozen.forward(1)
        with event.span("second"):
            frozen.forward(1)
    event.stop()
    assert event.spans == Span("job", 0, 2, None, [Span("first", 0, 2), Span("second", 1, 1)])


def test_a_span_tells_when_the_token_aborted_in_it(frozen):
    event = Event()
    event.start("job")
    with event.span("before"):
        frozen.forward(1)
    with event.span("during"):
        frozen.forward(2)
        event.signal.abort(REASONS[0])
        frozen.forward(4)
    event.stop()
    before, during = event.spans.children
    assert (before.aborted, during.aborted, event.spans.aborted) == (None, 3, 3)
    assert (during.duration, event.spans.duration) == (6, 7)


def test_stopping_twice_or_without_a_start_is_harmless(frozen):
    event = Event()
    event.stop()
    assert event.spans is None
    event.start("job")
    frozen.forward(1)
    event.stop()
    frozen.forward(1)
    event.stop()
    assert event.spans == Span("job", 0, 1)


def test_a_span_ends_also_when_its_body_raises(frozen):
    def fail():
        with event.span("part"):
            frozen.forward(3)
            raise ValueError("no")

    event = Event()
    event.start("job")
    with pytest.raises(ValueError, match="no"):
        fail()
    assert event.spans.children == [Span("part", 0, 3)]


def test_the_event_of_a_run_counts_from_when_that_began():
    event = Event.for_job(AbortToken(), job_id=7, name="email.send", attempt=1, began=time.monotonic() - 5.0)
    event.start("email.send")
    assert event.spans is not None
    assert 5.0 <= event.spans.started < 60.0


def test_the_log_of_an_event_and_of_its_children_names_the_job_beside_the_callers_fields(caplog):
    caplog.set_level(logging.INFO)
    event = Event.for_job(AbortToken(), job_id=7, name="email.send", attempt=2)
    event.start("job")
    event.log.info("one", extra={"to": "somebody"})
    with event.span("part") as part:
        part.log.warning("two of %d", 2)
    first, second = caplog.records
    assert {(r.name, r.job_id, r.job_name, r.job_attempt) for r in caplog.records} == {
        ("queue_kit.job", 7, "email.send", 2)
    }
    assert (first.to, second.getMessage(), second.levelname) == ("somebody", "two of 2", "WARNING")


def test_an_event_made_for_a_unit_test_works_without_a_job(caplog):
    caplog.set_level(logging.INFO)
    event = Event()
    with event.span("part") as part:
        part.log.info("hello")
    assert caplog.messages == ["hello"]
    assert part.spans.duration is not None
