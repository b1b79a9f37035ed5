"""How far ahead a worker claims: what it does soon, at its rate of late and by the slowest name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_kit._pace import AT_FIRST, FADING, HORIZON, MOST_AHEAD, RECENT, Pace


def run(pace: Pace, clock, count: int = 1, *, name: str = "quick", seconds: float = 0.0) -> None:
    """Let runs end now, all at once."""
    for _ in range(count):
        pace.ended(name, seconds, clock())


def test_at_first_nothing_is_held_ahead(frozen):
    assert Pace(10, most=None).ahead() == 0


def test_at_first_four_times_what_ended(frozen):
    pace = Pace(10, most=None)
    run(pace, frozen, 7)
    assert pace.ahead() == 28
    frozen.forward(HORIZON / 8)
    run(pace, frozen, 5)
    assert pace.ahead() == 48


def test_as_many_as_end_in_the_horizon_at_the_rate_of_late(frozen):
    pace = Pace(10, most=None)
    for _ in range(8):
        run(pace, frozen, 10)
        frozen.forward(HORIZON / 8)
    assert pace.ahead() == 80
    for _ in range(8):
        run(pace, frozen, 20)
        frozen.forward(HORIZON / 8)
    assert pace.ahead() == 160


def test_what_ended_long_ago_is_forgotten(frozen):
    pace = Pace(10, most=None)
    run(pace, frozen, 8)
    frozen.forward(HORIZON / 2)
    assert pace.ahead() == 16
    run(pace, frozen, 3)
    frozen.forward(HORIZON / 2)
    assert pace.ahead() == 6
    frozen.forward(HORIZON)
    assert pace.ahead() == 0


@pytest.mark.parametrize(("pullers", "seconds", "ahead"), [(1, 0.01, 25), (4, 0.01, 100), (4, 0.25, 4), (3, 1.0, 0)])
def test_no_more_than_what_is_begun_within_the_horizon(frozen, pullers, seconds, ahead):
    pace = Pace(pullers, most=None)
    run(pace, frozen, 500, seconds=seconds)
    assert pace.ahead() == ahead


def test_the_slowest_name_decides(frozen):
    pace = Pace(2, most=None)
    run(pace, frozen, 100)
    assert pace.ahead() == 400
    run(pace, frozen, name="slow", seconds=0.05)
    assert pace.ahead() == 10


def test_a_slow_run_is_remembered_less_with_every_further_one_of_its_name(frozen):
    pace = Pace(1, most=None)
    run(pace, frozen, seconds=0.025)
    run(pace, frozen, 500, name="other")
    assert pace.ahead() == 10
    run(pace, frozen, 10)
    assert pace.ahead() == int(HORIZON / (0.025 * FADING**10))


def test_a_name_that_was_not_seen_for_long_says_nothing(frozen):
    pace = Pace(1, most=None)
    run(pace, frozen, name="slow", seconds=30.0)
    run(pace, frozen, 9)
    assert pace.ahead() == 0
    frozen.forward(RECENT - 0.01)
    run(pace, frozen, 9)
    assert pace.ahead() == 0
    frozen.forward(0.02)
    assert pace.ahead() == 36
    run(pace, frozen, name="slow", seconds=0.05)  # as if it were seen for the first time
    assert pace.ahead() == 5


def test_never_more_than_the_most(frozen):
    for most, ahead in ((None, MOST_AHEAD), (20, 20)):
        pace = Pace(1, most=most)
        run(pace, frozen, 5_000)
        assert pace.ahead() == ahead
        assert not pace.strict


def test_strict_is_nothing_ahead_however_fast_it_goes(frozen):
    pace = Pace(100, most=0)
    run(pace, frozen, 5_000)
    assert pace.strict
    assert pace.ahead() == 0


RUNS = st.lists(
    st.tuples(
        st.floats(0, 0.4),
        st.sampled_from("abc"),
        st.floats(0, 3).filter(lambda seconds: seconds == 0 or seconds > 1e-9),
    ),
    max_size=60,
)


@given(runs=RUNS, pullers=st.integers(1, 50), most=st.none() | st.integers(0, 10), wait=st.floats(0, 1))
def test_it_stays_within_its_bounds(frozen, runs, pullers, most, wait):
    pace = Pace(pullers, most=most)
    at = []
    for pause, name, seconds in runs:
        frozen.forward(pause)
        pace.ended(name, seconds, frozen())
        at.append(frozen())
    frozen.forward(wait)
    ahead = pace.ahead()
    # Counted in halves: what ended before that may count for half as long again.
    assert 0 <= ahead <= AT_FIRST * sum(frozen() - each <= 1.5 * HORIZON for each in at)
    assert ahead <= (MOST_AHEAD if most is None else most)
    last = {name: seconds for _, name, seconds in runs}
    seen = {name: when for (_, name, _), when in zip(runs, at, strict=True)}
    for name, seconds in last.items():
        if frozen() - seen[name] < RECENT - 0.001 and seconds > 0:
            assert ahead <= pullers * HORIZON / seconds


@given(pauses=st.lists(st.floats(0, 0.3), max_size=60), wait=st.floats(0, 0.3))
def test_all_that_ended_in_half_a_horizon_counts(frozen, pauses, wait):
    pace = Pace(10_000, most=None)
    at = []
    for pause in pauses:
        frozen.forward(pause)
        run(pace, frozen)
        at.append(frozen())
    frozen.forward(wait)
    # A half that is seen late counts for as long as it was.
    assert pace.ahead() >= int(sum(frozen() - each < HORIZON / 2 for each in at) / 1.5)
