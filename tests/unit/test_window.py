"""What is claimed ahead comes out best first, and its bytes are counted."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_kit import Job
from queue_kit._window import Window
from queue_kit.job import Claimed
from tests.unit.jobs import NOW, claimed


@st.composite
def jobs(draw: st.DrawFn) -> list[Claimed]:
    fields = st.tuples(st.integers(0, 3), st.integers(-2, 2), st.integers(0, 5_000))
    return [
        claimed(number, priority=priority, due=due, size=size)
        for number, (priority, due, size) in enumerate(draw(st.lists(fields, max_size=30)))
    ]


@given(jobs(), st.randoms())
def test_jobs_come_out_in_the_order_of_claims_however_they_came_in(given_jobs, random):
    window = Window()
    mixed = list(given_jobs)
    random.shuffle(mixed)
    for at, job in enumerate(mixed):
        window.put([job], at=float(at))
    assert len(window) == len(given_jobs)
    out = []
    while window:
        assert window.best is not None
        best = window.best
        out.append(window.pop())
        assert out[-1] is best
    assert out == sorted(given_jobs, key=lambda job: job.place)


@given(jobs(), st.integers(0, 30), st.integers(0, 30))
def test_the_size_is_that_of_what_is_held(given_jobs, popped, shed_before):
    window = Window()
    held = {}
    for at, job in enumerate(given_jobs):
        window.put([job], at=float(at))
        held[job.job.id] = job
    for _ in range(min(popped, len(held))):
        del held[window.pop().job.id]
    assert (len(window), window.size) == (len(held), sum(job.size for job in held.values()))
    for job in window.shed(before=float(shed_before)):
        assert job.job.id < shed_before
        del held[job.job.id]
    assert all(number >= shed_before for number in held)
    assert (len(window), window.size) == (len(held), sum(job.size for job in held.values()))
    assert [window.pop() for _ in range(len(window))] == sorted(held.values(), key=lambda job: job.place)
    assert window.size == 0


def test_a_cron_job_stands_where_its_row_is_due_not_at_its_tick():
    window = Window()
    tick = NOW - timedelta(days=1)
    retried = Claimed(Job(1, "name", {}, 5, tick, NOW), claim_no=1, due=NOW)
    window.put([retried, claimed(2, due=-60)], at=0.0)
    assert [window.pop().job.id, window.pop().job.id] == [2, 1]


def test_an_empty_window_has_no_best():
    window = Window()
    assert not window
    assert window.shed(before=1e9) == []
    with pytest.raises(IndexError):
        window.pop()
    with pytest.raises(IndexError):
        _ = window.best
