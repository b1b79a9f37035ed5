"""How runs ended, on the way to the database: what travels together, what is tried again, who waits for what, and what
an observer that raises may not spoil."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from queue_kit import _endings
from queue_kit._endings import MANY, MOST_UNWRITTEN, Ending, Endings, Settlement
from queue_kit.job import Claimed, Outcome, Verdict
from tests.support import PATIENCE, turns, until
from tests.unit.jobs import claimed

COMPLETED = Outcome(Verdict.completed)
PAUSE = 3_600.0
"""Stands for `LOCKED_PAUSE` and `GATHERING`: it is over when a test moves the clock, however slow the machine is."""


class Database:
    """Notes the batches that it is sent and waits until they are let through; `locked` and `lost` are job ids."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.outcomes: list[Outcome] = []
        self.through = asyncio.Semaphore(0)
        self.locked: set[int] = set()
        self.lost: set[int] = set()

    async def __call__(self, batch: Sequence[tuple[Claimed, Outcome]]) -> list[Settlement]:
        self.batches.append([claimed.job.id for claimed, _ in batch])
        self.outcomes += [outcome for _, outcome in batch]
        await self.through.acquire()
        return [self._settlement(claimed.job.id) for claimed, _ in batch]

    def _settlement(self, job_id: int) -> Settlement:
        if job_id in self.locked:
            return Settlement.locked
        return Settlement.lost if job_id in self.lost else Settlement.done

    def answers(self, times: int = 1) -> None:
        """Let this many batches through."""
        for _ in range(times):
            self.through.release()


class Reports:
    """What the endings' observer is told; it raises for the job ids in `spoiled`."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Verdict]] = []
        self.spoiled: set[int] = set()

    def __call__(self, endings: Sequence[Ending]) -> None:
        self.told += [(ending.claimed.job.id, ending.outcome.verdict) for ending in endings]
        if any(ending.claimed.job.id in self.spoiled for ending in endings):
            raise ValueError("spoiled")


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
async def endings(database: Database, reports: Reports, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Endings]:
    monkeypatch.setattr(_endings, "LOCKED_PAUSE", PAUSE)
    monkeypatch.setattr(_endings, "GATHERING", PAUSE)
    made = Endings(database, reports)
    yield made
    await made.close()


def ending(number: int, outcome: Outcome = COMPLETED) -> Ending:
    return Ending(claimed(number), outcome, seconds=0.1)


def completed(*numbers: int) -> list[tuple[int, Verdict]]:
    return [(number, Verdict.completed) for number in numbers]


# --- what travels together --------------------------------------------------------------------------------------------


async def test_idle_an_ending_travels_alone_and_at_once(endings, database, reports):
    endings.put(ending(1))
    await turns()
    assert database.batches == [[1]]
    assert reports.told == []
    database.answers()
    await until(lambda: reports.told == completed(1))
    endings.put(ending(2))
    await turns()
    assert database.batches == [[1], [2]]


async def test_the_second_ending_of_a_job_that_was_lost_and_claimed_again_goes_out_after_the_first(
    endings, database, reports
):
    for number in (1, 2, 1, 3, 1):
        endings.put(ending(number))
    database.answers(3)
    await until(lambda: len(reports.told) == 5)
    assert database.batches == [[1, 2, 3], [1], [1]]


async def test_what_ends_in_the_same_turn_of_the_loop_travels_together(endings, database, reports):
    async def end(number: int) -> None:
        endings.put(ending(number))

    await asyncio.gather(*map(end, (1, 2, 3)))
    database.answers()
    await until(lambda: reports.told == completed(1, 2, 3))
    assert database.batches == [[1, 2, 3]]


async def test_what_ends_while_a_batch_is_in_flight_goes_out_as_the_next(endings, database, reports):
    endings.put(ending(1))
    await turns()
    for number in (2, 3):
        endings.put(ending(number))
        await turns()
    endings.put(ending(4))
    await turns()
    assert database.batches == [[1]]
    database.answers()
    await until(lambda: reports.told == completed(1))
    await turns()
    assert database.batches == [[1], [2, 3, 4]]
    database.answers()
    await until(lambda: reports.told == completed(1, 2, 3, 4))
    assert len(database.batches) == 2


async def test_after_many_at_once_more_may_join_for_a_moment(endings, database, reports, clock):
    many = range(MANY + 1)
    for number in many:
        endings.put(ending(number))
    await turns()
    endings.put(ending(1001))
    database.answers(2)
    await until(lambda: reports.told == completed(*many))
    await turns()
    endings.put(ending(1002))
    await turns()
    assert database.batches == [[*many]]
    clock.forward(PAUSE + 0.01)
    await until(lambda: len(reports.told) == MANY + 3)
    assert database.batches == [[*many], [1001, 1002]]


async def test_after_many_at_once_the_next_goes_out_at_once_while_pullers_wait_for_their_endings(endings, database):
    writing = [asyncio.create_task(endings.write(ending(number))) for number in range(MANY + 1)]
    await turns()
    last = asyncio.create_task(endings.write(ending(1001)))
    await turns()
    database.answers(2)
    await asyncio.wait_for(asyncio.gather(*writing, last), PATIENCE)
    assert database.batches == [[*range(MANY + 1)], [1001]]


async def test_after_many_at_once_the_next_go_out_at_once_while_pullers_wait_for_room(endings, database, clock):
    for number in range(MANY + 1):
        endings.put(ending(number))
    await turns()
    for number in range(1001, 1001 + MOST_UNWRITTEN + 1):
        endings.put(ending(number))
    assert endings.full
    database.answers(2)
    await asyncio.wait_for(endings.room(), PATIENCE)
    assert [len(batch) for batch in database.batches] == [MANY + 1, MOST_UNWRITTEN + 1]


async def test_each_ending_is_told_with_its_own_outcome(endings, database, reports):
    outcomes = [Outcome(Verdict.failed, error={"reason": "no"}), Outcome(Verdict.snoozed, delay=5.0), COMPLETED]
    for number, outcome in enumerate(outcomes):
        endings.put(ending(number, outcome))
    database.answers()
    await until(lambda: len(reports.told) == 3)
    assert database.outcomes == outcomes
    assert reports.told == [(0, Verdict.failed), (1, Verdict.snoozed), (2, Verdict.completed)]


# --- locked, lost -----------------------------------------------------------------------------------------------------


async def test_one_that_is_locked_is_tried_again_after_a_pause_and_holds_up_nobody(endings, database, reports, clock):
    database.locked = {2}
    for number in (1, 2, 3):
        endings.put(ending(number))
    database.answers(3)
    await until(lambda: reports.told == completed(1, 3))
    endings.put(ending(4))
    await until(lambda: reports.told == completed(1, 3, 4))
    assert database.batches == [[1, 2, 3], [4]]
    database.locked.clear()
    clock.forward(PAUSE + 0.01)
    await until(lambda: reports.told == completed(1, 3, 4, 2))
    assert database.batches == [[1, 2, 3], [4], [2]]


async def test_one_that_stays_locked_is_tried_again_and_again(endings, database, reports, clock):
    database.locked = {1}
    database.answers(4)
    endings.put(ending(1))
    for tries in (1, 2, 3):
        await until(lambda tries=tries: len(database.batches) == tries)
        await turns()
        assert reports.told == []
        clock.forward(PAUSE + 0.01)
    database.locked.clear()
    await until(lambda: reports.told == completed(1))
    await asyncio.wait_for(endings.room(0), PATIENCE)


async def test_one_that_is_lost_is_reported_as_lost_and_its_neighbours_are_not(endings, database, reports):
    database.lost = {2}
    for number in (1, 2, 3):
        endings.put(ending(number))
    database.answers()
    await until(lambda: len(reports.told) == 3)
    assert reports.told == [(1, Verdict.completed), (2, Verdict.lost), (3, Verdict.completed)]
    await asyncio.wait_for(endings.room(0), PATIENCE)


# --- who waits --------------------------------------------------------------------------------------------------------


async def test_writing_waits_for_its_own_ending_and_for_no_other(endings, database, reports):
    first = asyncio.create_task(endings.write(ending(1)))
    await turns()
    second = asyncio.create_task(endings.write(ending(2)))
    await turns()
    assert not first.done()
    database.answers()
    await asyncio.wait_for(first, PATIENCE)
    assert reports.told == completed(1)
    assert not second.done()
    database.answers()
    await asyncio.wait_for(second, PATIENCE)
    assert reports.told == completed(1, 2)


async def test_writing_waits_while_its_row_is_locked(endings, database, reports, clock):
    database.locked = {1}
    database.answers(2)
    writing = asyncio.create_task(endings.write(ending(1)))
    await until(lambda: database.batches)
    await turns()
    assert not writing.done()
    database.locked.clear()
    clock.forward(PAUSE + 0.01)
    await asyncio.wait_for(writing, PATIENCE)
    assert reports.told == completed(1)


async def test_one_that_is_lost_ends_the_wait_as_well(endings, database, reports):
    database.lost = {1}
    database.answers()
    await asyncio.wait_for(endings.write(ending(1)), PATIENCE)
    assert reports.told == [(1, Verdict.lost)]


async def test_the_ending_of_a_writer_that_was_cancelled_still_goes_out_and_spoils_nothing(endings, database, reports):
    first = asyncio.create_task(endings.write(ending(1)))
    await turns()
    waiting, neighbour = (asyncio.create_task(endings.write(ending(number))) for number in (2, 3))
    await turns()
    first.cancel()
    waiting.cancel()
    database.answers(2)
    await asyncio.wait_for(neighbour, PATIENCE)
    assert database.batches == [[1], [2, 3]]
    assert reports.told == completed(1, 2, 3)
    assert first.cancelled()
    assert waiting.cancelled()


async def test_putting_waits_for_nobody_and_room_for_as_many_as_are_too_many(endings, database, reports):
    endings.put(ending(1))
    await turns()
    for number in (2, 3, 4):
        endings.put(ending(number))
    await asyncio.wait_for(endings.room(4), PATIENCE)
    waiting = [asyncio.create_task(endings.room(most)) for most in (3, 2, 0)]
    await turns()
    assert [task.done() for task in waiting] == [False, False, False]
    database.answers()
    await until(waiting[0].done)
    assert [task.done() for task in waiting] == [True, False, False]  # three are left
    database.answers()
    await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
    assert reports.told == completed(1, 2, 3, 4)


async def test_by_default_there_is_room_for_many_but_not_for_any_number(endings, database, clock):
    for number in range(MOST_UNWRITTEN):
        endings.put(ending(number))
    await asyncio.wait_for(endings.room(), PATIENCE)
    await turns()
    endings.put(ending(MOST_UNWRITTEN))
    waiting = asyncio.create_task(endings.room())
    await turns()
    assert not waiting.done()
    database.answers()
    await asyncio.wait_for(waiting, PATIENCE)
    clock.forward(PAUSE + 0.01)
    await until(lambda: len(database.batches) == 2)
    assert [len(batch) for batch in database.batches] == [MOST_UNWRITTEN, 1]


async def test_one_that_is_locked_counts_until_it_is_written(endings, database, clock):
    database.locked = {1}
    database.answers(2)
    endings.put(ending(1))
    flushed = asyncio.create_task(endings.room(0))
    await until(lambda: database.batches)
    await turns()
    assert not flushed.done()
    database.locked.clear()
    clock.forward(PAUSE + 0.01)
    await asyncio.wait_for(flushed, PATIENCE)


async def test_with_nothing_under_way_there_is_room(endings, database):
    await asyncio.wait_for(endings.room(0), PATIENCE)
    assert database.batches == []


# --- observers --------------------------------------------------------------------------------------------------------


async def test_an_observer_that_raises_spoils_nothing(endings, database, reports, caplog):
    reports.spoiled = {1, 2}
    writing = [asyncio.create_task(endings.write(ending(number))) for number in (1, 2, 3)]
    await until(lambda: database.batches)
    endings.put(ending(4))  # goes out as the next, with nobody to ask for it
    database.answers(2)
    await asyncio.wait_for(asyncio.gather(*writing), PATIENCE)
    await asyncio.wait_for(endings.room(0), PATIENCE)
    assert reports.told == completed(1, 2, 3, 4)
    assert "3 endings are stored, but were not all reported" in caplog.text
    endings.put(ending(5))
    database.answers()
    await until(lambda: reports.told == completed(1, 2, 3, 4, 5))


# --- closing ----------------------------------------------------------------------------------------------------------


async def test_closing_gives_up_what_is_in_flight(endings, database, reports):
    endings.put(ending(1))
    await turns()
    await asyncio.wait_for(endings.close(), PATIENCE)
    database.answers()
    await turns()
    assert not database.through.locked()  # nobody was left to take it
    assert reports.told == []


async def test_closing_gives_up_what_waits_for_a_lock(endings, database, reports, clock):
    database.locked = {1}
    database.answers(2)
    endings.put(ending(1))
    await until(lambda: database.batches)
    await turns()
    await asyncio.wait_for(endings.close(), PATIENCE)
    clock.forward(PAUSE + 0.01)
    await turns()
    assert database.batches == [[1]]
    assert reports.told == []


async def test_closing_twice_or_idle_is_harmless_and_what_comes_later_goes_nowhere(endings, database):
    await endings.close()
    await endings.close()
    endings.put(ending(1))
    await turns()
    assert database.batches == []
