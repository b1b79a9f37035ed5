"""Where claims begin: behind the last one, and now and then at the head, so that nothing is left for ever."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queue_kit._scan import CHEAP, RESCAN_EVERY, RESCAN_WITHIN, SAMPLES, SHARE, Scan
from queue_kit.job import MAX_PRIORITY, Claimed
from tests.unit.jobs import claimed


def ended(scan: Scan, *numbers: int, more: bool, seconds: float = 0.0) -> None:
    """Let a claim end that began wherever the scan says."""
    scan.ended(scan.begin(), [claimed(number) for number in numbers], more=more, seconds=seconds)


def ended_costly(scan: Scan, *numbers: int, more: bool, seconds: float) -> None:
    """Let as many claims from the head end as make one believe that it is costly."""
    for _ in range(SAMPLES):
        scan.rewind()
        ended(scan, *numbers, more=more, seconds=seconds)


@pytest.fixture
def scan(frozen) -> Scan:
    return Scan(strict=False)


def test_the_first_claim_begins_at_the_head(scan):
    assert scan.begin() is None


def test_while_there_is_more_the_next_claim_begins_behind_the_last_job(scan):
    ended(scan, 1, 2, 3, more=True)
    assert scan.begin() == claimed(3).place
    ended(scan, 4, 5, more=True)
    assert scan.begin() == claimed(5).place


def test_the_head_is_looked_at_again_after_a_while(frozen, scan):
    ended(scan, 1, more=True)
    frozen.forward(RESCAN_EVERY - 0.001)
    assert scan.begin() == claimed(1).place
    assert scan.rescan_in() == pytest.approx(0.001)
    frozen.forward(0.002)
    assert scan.begin() is None


def test_claims_behind_the_mark_do_not_put_off_the_next_look_at_the_head(frozen, scan):
    ended(scan, 1, more=True)
    for number in range(2, 12):
        frozen.forward(RESCAN_EVERY / 9)
        ended(scan, number, more=True)
    assert scan.rescan_in() > 0  # the tenth was at the head again
    assert scan.begin() == claimed(11).place
    frozen.forward(RESCAN_EVERY)
    assert scan.begin() is None


def test_with_little_to_do_and_a_cheap_head_every_claim_begins_there(scan):
    ended(scan, 1, 2, more=False, seconds=CHEAP)
    assert scan.begin() is None


@pytest.mark.parametrize("more", [True, False])
def test_a_costly_head_is_left_out_for_longer(frozen, scan, more):
    ended_costly(scan, 1, more=more, seconds=0.2)
    assert scan.rescan_in() == pytest.approx(SHARE * 0.2)
    frozen.forward(SHARE * 0.2 - 0.001)
    assert scan.begin() == claimed(1).place
    frozen.forward(0.002)
    assert scan.begin() is None


def test_the_quickest_of_several_looks_at_the_head_says_what_it_costs(scan):
    for seconds in (2.0, 0.3, 0.02, 1.0):
        scan.rewind()
        ended(scan, 1, more=False, seconds=seconds)
    assert scan.rescan_in() == pytest.approx(SHARE * 0.02)
    for seconds in (0.2, 0.2):
        scan.rewind()
        ended(scan, 1, more=False, seconds=seconds)
    assert scan.rescan_in() == pytest.approx(SHARE * 0.02)
    scan.rewind()
    ended(scan, 1, more=False, seconds=0.2)  # the quick one is forgotten
    assert scan.rescan_in() == pytest.approx(SHARE * 0.2)


@pytest.mark.parametrize("more", [True, False])
def test_the_head_is_looked_at_within_seconds_whatever_it_seems_to_cost(frozen, scan, more):
    ended_costly(scan, 1, more=more, seconds=12.0)  # as when handlers let nobody else run
    assert scan.begin() is not None
    frozen.forward(RESCAN_WITHIN)
    assert scan.begin() is None


def test_one_look_at_the_head_that_was_slow_says_nothing(scan):
    for _ in range(SAMPLES - 1):
        scan.rewind()
        ended(scan, 1, more=False, seconds=9.0)
        assert scan.begin() is None
    ended(scan, 1, more=False, seconds=CHEAP)
    assert scan.begin() is None


def test_a_look_that_took_less_than_a_round_trip_costs_nothing(scan):
    ended_costly(scan, 1, more=False, seconds=-0.01)
    assert scan.begin() is None


def test_claims_that_were_slow_behind_the_mark_say_nothing_about_the_head(frozen, scan):
    ended(scan, 1, more=True)
    for number in range(2, 2 + SAMPLES):
        ended(scan, number, more=True, seconds=10.0)
    frozen.forward(RESCAN_EVERY + 0.001)
    ended(scan, 10, more=False, seconds=10.0)
    assert scan.begin() is None


def test_rewinding_leads_to_the_head_at_once(scan):
    ended_costly(scan, 1, more=True, seconds=1.0)
    assert scan.begin() is not None
    scan.rewind()
    assert scan.begin() is None
    assert scan.rescan_in() <= 0


def test_the_mark_goes_back_when_the_head_has_more_than_a_claim_takes(scan):
    ended(scan, 100, more=True)
    scan.rewind()
    ended(scan, 1, 2, 3, more=True)
    assert scan.begin() == claimed(3).place


def test_the_mark_stays_when_the_head_had_a_few_late_ones(scan):
    ended(scan, 100, more=True)
    ended_costly(scan, 1, 2, more=False, seconds=1.0)
    assert scan.begin() == claimed(100).place


def test_a_claim_that_found_nothing_moves_no_mark(scan):
    ended(scan, 7, more=True)
    ended(scan, more=False)
    assert scan.begin() == claimed(7).place


def test_a_costly_head_where_nothing_was_found_leaves_everything_out(scan):
    ended_costly(scan, more=False, seconds=1.0)
    priority, due, _ = scan.begin()
    assert priority == MAX_PRIORITY
    assert due > datetime(9999, 1, 1, tzinfo=UTC)


def test_strict_always_begins_at_the_head(frozen):
    scan = Scan(strict=True)
    ended_costly(scan, 1, 2, more=True, seconds=5.0)
    assert scan.begin() is None
    assert scan.rescan_in() == 0.0


PLACES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40)
STEPS = st.lists(st.tuples(st.integers(1, 8), st.floats(0, 0.2), st.floats(0, 0.1)), max_size=60)


class Jobs:
    """Stands for the database: what waits, in order."""

    def __init__(self) -> None:
        self.waiting: list[Claimed] = []
        self.taken: list[Claimed] = []
        self._count = 0

    def add(self, priority: int, due: int) -> None:
        self._count += 1
        self.waiting.append(claimed(self._count, priority=priority, due=due))
        self.waiting.sort(key=lambda job: job.place)

    def claim(self, scan: Scan, most: int, seconds: float) -> bool:
        """Whether there may be more."""
        after = scan.begin()
        found = [job for job in self.waiting if after is None or job.place > after][:most]
        self.waiting = [job for job in self.waiting if job not in found]
        self.taken += found
        scan.ended(after, found, more=len(found) == most, seconds=seconds)
        return len(found) == most


@given(places=PLACES, steps=STEPS)
def test_what_waits_from_the_start_is_taken_in_order_and_nothing_is_passed(frozen, places, steps):
    jobs, scan = Jobs(), Scan(strict=False)
    for place in places:
        jobs.add(*place)
    for most, pause, seconds in steps:
        jobs.claim(scan, most, seconds)
        frozen.forward(pause)
    while jobs.claim(scan, 3, 0.0):
        pass
    assert jobs.waiting == []
    assert jobs.taken == sorted(jobs.taken, key=lambda job: job.place)


@given(places=PLACES, late=PLACES, steps=STEPS)
def test_what_comes_late_is_found_when_the_head_may_be_looked_at_again(frozen, places, late, steps):
    jobs, scan = Jobs(), Scan(strict=False)
    for place in places:
        jobs.add(*place)
    for number, (most, pause, seconds) in enumerate(steps):
        jobs.claim(scan, most, seconds)
        frozen.forward(pause)
        if number < len(late):
            jobs.add(*late[number])
    frozen.forward(max(scan.rescan_in(), 0.0))
    while jobs.claim(scan, 3, 0.0) or scan.begin() is not None:
        frozen.forward(max(scan.rescan_in(), 0.0))
    assert jobs.waiting == []
