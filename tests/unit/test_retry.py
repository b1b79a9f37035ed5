"""Retry delays: the exponential ones within their bounds, and whatever else may be given brought into range."""

import math
import statistics
from datetime import timedelta

import pytest

from queue_kit import ConfigurationError, Handler, Snooze, exponential
from queue_kit.retry import delay_after

A_YEAR = 365 * 86_400


async def nothing(event, session, job):
    """A handler, to be given delays."""


# --- exponential ------------------------------------------------------------------------------------------------------


def test_each_wait_is_twice_the_one_before_up_to_the_cap():
    delay = exponential(base=0.5, cap=5, jitter=0)
    assert [delay(attempt) for attempt in range(1, 8)] == [0.5, 1, 2, 4, 5, 5, 5]


def test_the_default_is_a_second_doubled_up_to_an_hour_and_shortened_by_half_at_most():
    delay = exponential()
    for attempt in range(1, 30):
        longest = min(2.0 ** (attempt - 1), 3_600)
        waits = [delay(attempt) for _ in range(400)]
        assert longest / 2 <= min(waits) < longest * 0.6
        assert longest * 0.9 < max(waits) <= longest
        assert longest * 0.7 < statistics.mean(waits) < longest * 0.8


@pytest.mark.parametrize("jitter", [0.1, 0.5, 1])
def test_jitter_is_the_share_by_which_a_wait_may_be_shortened(jitter):
    waits = [exponential(base=100, jitter=jitter)(1) for _ in range(400)]
    assert 100 * (1 - jitter) <= min(waits) < 100 * (1 - jitter * 0.9)
    assert 100 * (1 - jitter * 0.1) < max(waits) <= 100
    assert len(set(waits)) > 350  # or all that failed together would come back together


@pytest.mark.parametrize("attempt", [61, 1_100, 2**31])
def test_many_tries_overflow_nothing(attempt):
    assert exponential(jitter=0)(attempt) == 3_600
    assert exponential(base=1e300, cap=60, jitter=0)(attempt) == 60


def test_a_base_or_cap_of_zero_never_waits():
    assert exponential(base=0)(9) == exponential(cap=0)(9) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        *({"base": wrong} for wrong in (-1, math.inf, math.nan)),
        *({"cap": wrong} for wrong in (-1, math.inf, math.nan, A_YEAR + 1)),
        *({"jitter": wrong} for wrong in (-0.1, 1.1, math.nan)),
    ],
    ids=str,
)
def test_what_no_exponential_can_be_made_of_is_refused(arguments):
    (word,) = arguments
    with pytest.raises(ConfigurationError, match=word):
        exponential(**arguments)


# --- whatever is given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (0, 0),
        (90, 90),
        (1.5, 1.5),
        (timedelta(minutes=2), 120),
        (A_YEAR, A_YEAR),
        (lambda attempt: attempt * 10, 30),
        (lambda attempt: timedelta(hours=attempt), 10_800),
        (exponential(base=2, jitter=0), 8),
        (lambda _: -5, 0),
        (lambda _: timedelta(-1), 0),
        (lambda _: math.nan, 0),
        (lambda _: math.inf, A_YEAR),
        (lambda _: 10**30, A_YEAR),
    ],
)
def test_a_delay_is_brought_into_what_a_database_can_add_to_its_clock(given, seconds):
    delay = Handler(nothing, retry_delay=given).retry_delay
    wait = delay_after(delay, 3)
    assert (type(wait), wait) == (float, seconds)


@pytest.mark.parametrize(
    "wrong", [-1, -0.5, math.nan, math.inf, A_YEAR + 1, timedelta(-1), timedelta(366), True, "1", []]
)
def test_what_is_no_delay_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="retry_delay"):
        Handler(nothing, retry_delay=wrong)


# --- snooze -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "seconds"), [(0, 0.0), (1.5, 1.5), (timedelta(hours=1), 3_600.0)])
def test_a_snooze_carries_its_seconds(given, seconds):
    assert Snooze(given).seconds == seconds


@pytest.mark.parametrize("wrong", [-1, timedelta(-1), math.nan, math.inf])
def test_a_snooze_without_an_end_or_into_the_past_is_refused(wrong):
    with pytest.raises(ValueError, match="Snooze"):
        Snooze(wrong)
