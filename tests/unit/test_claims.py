"""Idle pullers and claimed jobs: one statement for all who wait, what is claimed ahead waits best first, no wake-up is
lost, and no job is left that nobody runs."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from queue_kit._claims import BYTES_AHEAD, STALE, TURN, Claims, Haul
from queue_kit.job import Claimed
from tests.support import PATIENCE, turns, until
from tests.unit.jobs import claimed


class Queue:
    """Stands for the database: jobs in the order in which they are claimed, the sizes of the claims, and a door that a
    claim waits at."""

    def __init__(self) -> None:
        self.jobs: list[Claimed] = []
        self.asked: list[tuple[int, int]] = []
        self.bytes_left: list[int] = []
        self.given_back: list[int] = []
        self.ahead = 0
        self.ready = True
        self.door = asyncio.Event()
        self.door.set()

    def holds(self, *numbers: int) -> None:
        self.jobs = [claimed(number) for number in numbers]

    async def fetch(self, wanted: int, ahead: int, bytes_ahead: int) -> Haul:
        self.asked.append((wanted, ahead))
        self.bytes_left.append(bytes_ahead)
        taken, self.jobs = self.jobs[: wanted + ahead], self.jobs[wanted + ahead :]
        await self.door.wait()  # what was committed meanwhile is not seen
        return Haul(taken, more=len(taken) == wanted + ahead)

    def give_back(self, job: Claimed) -> None:
        self.given_back.append(job.job.id)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
async def claims(queue: Queue) -> AsyncIterator[Claims]:
    pace = SimpleNamespace(ahead=lambda: queue.ahead)
    made = Claims(queue.fetch, queue.give_back, pace, ready=lambda: queue.ready)
    yield made
    made.close()


@contextlib.asynccontextmanager
async def serving(claims: Claims) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(claims.serve())
    try:
        yield task
    finally:
        claims.close()
        await asyncio.wait_for(task, PATIENCE)


def pull(claims: Claims, count: int = 1) -> list[asyncio.Task[Claimed | None]]:
    return [asyncio.create_task(claims.next()) for _ in range(count)]


async def numbers(tasks: list[asyncio.Task[Claimed | None]]) -> list[int | None]:
    got = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
    return [None if each is None else each.job.id for each in got]


# --- who waits --------------------------------------------------------------------------------------------------------


async def test_one_statement_claims_for_all_who_wait(claims, queue):
    queue.holds(1, 2, 3, 4, 5, 6)
    tasks = pull(claims, 5)
    await turns()
    async with serving(claims):
        assert await numbers(tasks) == [1, 2, 3, 4, 5]
        assert queue.asked == [(5, 0)]
        assert [job.job.id for job in queue.jobs] == [6]
    assert claims.delivered == 5


async def test_nothing_is_claimed_while_nobody_waits(claims, queue):
    queue.holds(1)
    async with serving(claims):
        claims.wake()
        await turns()
        assert queue.asked == []
        assert not claims.puller_waits
        assert await numbers(pull(claims)) == [1]


async def test_jobs_go_to_whoever_waits_longest_and_one_wake_up_is_one_statement(claims, queue):
    async with serving(claims):
        tasks = pull(claims, 4)
        await until(lambda: queue.asked and not queue.jobs)
        await turns()
        before = len(queue.asked)
        queue.holds(7, 8)
        claims.wake()
        assert await numbers(tasks[:2]) == [7, 8]
        await turns()
        assert queue.asked[before:] == [(4, 0)]
        assert claims.puller_waits
        assert not tasks[2].done()
        claims.close()
        assert await numbers(tasks) == [7, 8, None, None]


async def test_who_still_waits_after_a_full_claim_is_served_without_a_wake_up(claims, queue):
    queue.door.clear()
    queue.holds(1)
    async with serving(claims):
        first = pull(claims)
        await until(lambda: queue.asked == [(1, 0)])
        later = pull(claims, 2)
        await turns()
        queue.holds(2, 3)
        queue.door.set()
        assert await numbers(first + later) == [1, 2, 3]
        assert queue.asked == [(1, 0), (2, 0)]


async def test_a_wake_up_during_a_claim_is_not_lost(claims, queue):
    queue.door.clear()
    async with serving(claims):
        tasks = pull(claims)
        await until(lambda: queue.asked == [(1, 0)])
        queue.holds(1)
        claims.wake()
        queue.door.set()
        assert await numbers(tasks) == [1]
        assert queue.asked == [(1, 0), (1, 0)]


async def test_a_wake_up_while_all_are_busy_does_no_harm_and_who_comes_back_asks(claims, queue):
    async with serving(claims):
        queue.holds(1)
        assert await numbers(pull(claims)) == [1]
        claims.wake()
        await turns()
        queue.holds(2)
        assert await numbers(pull(claims)) == [2]
        assert queue.asked == [(1, 0), (1, 0)]


async def test_without_a_wake_up_an_empty_queue_is_not_asked_again(claims, queue):
    async with serving(claims):
        pull(claims, 3)
        await until(lambda: queue.asked)
        await turns(200)
        assert queue.asked == [(3, 0)]


async def test_the_job_of_a_puller_that_was_cancelled_goes_to_the_next(claims, queue):
    queue.door.clear()
    queue.holds(1)
    async with serving(claims):
        gone, stays = pull(claims, 2)
        await until(lambda: queue.asked == [(2, 0)])
        gone.cancel()
        await turns()
        queue.door.set()
        assert await numbers([stays]) == [1]
        assert queue.given_back == []


async def test_what_pullers_that_are_gone_asked_for_waits_for_the_next(claims, queue):
    queue.door.clear()
    queue.holds(1, 2)
    async with serving(claims):
        gone = pull(claims, 2)
        await until(lambda: queue.asked == [(2, 0)])
        for task in gone:
            task.cancel()
        await turns()
        queue.door.set()
        await turns()
        assert await numbers(pull(claims, 2)) == [1, 2]
        assert (queue.asked, queue.given_back) == ([(2, 0)], [])


# --- what is held ahead -----------------------------------------------------------------------------------------------


async def fill(claims: Claims, queue: Queue, *ahead: Claimed) -> None:
    """Have jobs held ahead: one puller takes a first one, number 0."""
    queue.ahead = len(ahead)
    queue.jobs = [claimed(0, priority=0), *ahead]
    assert await numbers(pull(claims)) == [0]
    queue.ahead = 0


async def test_what_is_held_ahead_is_handed_out_at_once_and_best_first(claims, queue):
    worse_first = [claimed(number, priority=priority) for number, priority in ((1, 7), (2, 3), (3, 9), (4, 3))]
    async with serving(claims):
        await fill(claims, queue, *worse_first)
        asked = list(queue.asked)
        assert [(await claims.next()).job.id for _ in range(3)] == [2, 4, 1]
        assert queue.asked == asked == [(1, 4)]
        assert claims.delivered == 4


async def test_a_better_job_that_comes_later_overtakes_what_is_held(claims, queue):
    async with serving(claims):
        await fill(claims, queue, *(claimed(number, priority=9) for number in (1, 2, 3, 4)))
        assert [(await claims.next()).job.id for _ in range(2)] == [1, 2]
        queue.ahead, queue.jobs = 4, [claimed(5, priority=1)]
        assert (await claims.next()).job.id == 3  # half is gone, so more is claimed
        await until(lambda: not queue.jobs)
        assert [(await claims.next()).job.id for _ in range(2)] == [5, 4]


async def test_the_window_is_filled_again_when_half_of_it_is_gone_and_the_last_claim_brought_all(claims, queue):
    async with serving(claims):
        await fill(claims, queue, *map(claimed, range(1, 11)))
        queue.ahead = 10
        queue.holds(*range(11, 31))
        for number in range(1, 6):  # five of ten are left: not less than half
            assert (await claims.next()).job.id == number
        await turns()
        assert queue.asked == [(1, 10)]
        assert (await claims.next()).job.id == 6
        await turns()
        assert queue.asked == [(1, 10), (0, 6)]
        assert [(await claims.next()).job.id for _ in range(4)] == [7, 8, 9, 10]


@pytest.mark.parametrize(("meanwhile", "held"), [(0, 40), (32, 40), (40, 50), (48, 60), (49, 60)])
async def test_the_next_claim_is_sent_while_a_quarter_more_is_held_than_was_taken_during_the_last(
    claims, queue, meanwhile, held
):
    async def take(count: int) -> None:
        for _ in range(count):
            assert await claims.next() is not None
        await turns()

    queue.holds(*range(1, 400))
    queue.ahead = 100
    async with serving(claims):
        await take(1)
        queue.ahead = 80 + meanwhile
        queue.door.clear()
        await take(51)
        await take(meanwhile)
        queue.door.set()
        await turns()
        assert queue.asked == [(1, 100), (0, 31 + meanwhile)]  # 80 are held
        await take(80 - held)
        assert len(queue.asked) == 2
        await take(1)
        assert len(queue.asked) == 3


async def test_a_window_is_not_filled_again_when_the_last_claim_brought_less_than_asked(claims, queue):
    async with serving(claims):
        queue.ahead = 10
        queue.holds(*range(1, 7))
        assert await numbers(pull(claims)) == [1]
        queue.holds(7, 8)
        assert [(await claims.next()).job.id for _ in range(5)] == [2, 3, 4, 5, 6]
        await turns()
        assert queue.asked == [(1, 10)]
        assert await numbers(pull(claims)) == [7]
        assert queue.asked == [(1, 10), (1, 10)]


async def test_nothing_is_asked_for_ahead_that_is_held_already(claims, queue):
    async with serving(claims):
        await fill(claims, queue, *map(claimed, range(1, 6)))
        queue.ahead = 8
        queue.holds(*range(6, 30))
        assert [(await claims.next()).job.id for _ in range(4)] == [1, 2, 3, 4]
        await turns()
        assert queue.asked == [(1, 5), (0, 7)]  # one of eight is held


async def test_a_window_whose_pullers_became_slow_is_not_filled_again(claims, queue):
    async with serving(claims):
        await fill(claims, queue, *map(claimed, range(1, 5)))
        queue.holds(*range(5, 10))
        assert [(await claims.next()).job.id for _ in range(4)] == [1, 2, 3, 4]
        await turns()
        assert queue.asked == [(1, 4)]


async def test_idle_pullers_come_before_the_window_and_get_the_best(claims, queue):
    queue.ahead = 2
    queue.jobs = [claimed(1, priority=9), claimed(2, priority=1), claimed(3, priority=5)]
    tasks = pull(claims)
    await turns()
    async with serving(claims):
        assert await numbers(tasks) == [2]
        assert [(await claims.next()).job.id for _ in range(2)] == [3, 1]


async def test_a_job_that_lost_a_lease_goes_first_to_who_waits(claims, queue):
    queue.jobs = [claimed(1, priority=0), claimed(2, priority=9, lost=1), claimed(3, priority=1)]
    queue.ahead = 1
    tasks = pull(claims, 2)
    await turns()
    async with serving(claims):
        assert sorted(await numbers(tasks)) == [1, 2]
        assert queue.given_back == []
        assert (await claims.next()).job.id == 3


async def test_a_job_that_lost_a_lease_is_never_held_ahead(claims, queue):
    queue.door.clear()
    queue.jobs = [claimed(1, lost=1), claimed(2)]
    async with serving(claims):
        gone = pull(claims, 2)
        await until(lambda: queue.asked)
        for task in gone:
            task.cancel()
        await turns()
        queue.door.set()
        await until(lambda: queue.given_back == [1])
        assert (await claims.next()).job.id == 2


async def test_what_is_held_is_not_handed_out_while_the_worker_is_not_ready(claims, queue):
    async with serving(claims):
        await fill(claims, queue, claimed(1))
        queue.ready = False
        queue.door.clear()  # the database is away
        task = pull(claims)
        await turns()
        assert not task[0].done()
        queue.ready = True
        queue.door.set()
        assert await numbers(task) == [1]


async def test_a_claim_that_is_refused_meanwhile_does_not_hand_out_either(claims, queue):
    async with serving(claims):
        await fill(claims, queue, claimed(1))
        queue.ready = False
        task = pull(claims)
        await until(lambda: len(queue.asked) == 2)
        await turns()
        assert not task[0].done()
        queue.ready = True
        claims.wake()
        assert await numbers(task) == [1]


async def test_the_bytes_that_may_still_be_held_are_told_to_each_claim(claims, queue):
    async with serving(claims):
        await fill(claims, queue, *(claimed(number, size=1_000_000) for number in (1, 2, 3, 4)))
        assert queue.bytes_left == [BYTES_AHEAD]
        queue.ahead = 4
        for number in (1, 2, 3):
            assert (await claims.next()).job.id == number
        await turns()
        assert queue.bytes_left == [BYTES_AHEAD, BYTES_AHEAD - 1_000_000]


async def test_more_bytes_than_may_be_held_leave_none_for_the_next_claim(claims, queue):
    async with serving(claims):
        await fill(claims, queue, *(claimed(number, size=BYTES_AHEAD) for number in (1, 2, 3, 4)))
        queue.ahead = 9
        for _ in range(3):
            await claims.next()
        await turns()
        assert queue.bytes_left == [BYTES_AHEAD, 0]


# --- giving back ------------------------------------------------------------------------------------------------------


async def test_a_stale_job_goes_back_by_itself_and_a_younger_one_stays(claims, queue, frozen):
    async with serving(claims):
        await fill(claims, queue, *map(claimed, range(1, 6)))
        frozen.forward(0.6 * STALE)
        await turns()
        assert queue.given_back == []
        queue.ahead = 2
        queue.holds(6)
        assert [(await claims.next()).job.id for _ in range(4)] == [1, 2, 3, 4]
        await turns()
        assert queue.asked[1:] == [(0, 1)]
        frozen.forward(0.6 * STALE)
        await turns()
        assert queue.given_back == [5]
        assert (await claims.next()).job.id == 6
        frozen.forward(10 * STALE)
        await turns()
        assert queue.given_back == [5]


async def test_all_that_is_held_for_too_long_goes_back(claims, queue, clock):
    async with serving(claims):
        await fill(claims, queue, *map(claimed, range(1, 6)))
        clock.forward(2 * STALE)
        await until(lambda: sorted(queue.given_back) == [1, 2, 3, 4, 5])
        queue.holds(6)
        assert await numbers(pull(claims)) == [6]


async def test_shedding_gives_back_all_that_is_held_and_claiming_goes_on(claims, queue):
    async with serving(claims):
        await fill(claims, queue, claimed(1), claimed(2))
        claims.shed()
        assert sorted(queue.given_back) == [1, 2]
        claims.shed()
        assert len(queue.given_back) == 2
        queue.holds(3)
        assert await numbers(pull(claims)) == [3]


async def test_shedding_by_age_leaves_what_is_younger(claims, queue, clock):
    async with serving(claims):
        await fill(claims, queue, claimed(1))
        claims.shed(claimed_before=time.monotonic() - 5.0)
        assert queue.given_back == []
        clock.forward(6.0)
        claims.shed(claimed_before=time.monotonic() - 5.0)
        assert queue.given_back == [1]


# --- closing ----------------------------------------------------------------------------------------------------------


async def test_closing_sends_everybody_home_and_gives_back_what_a_claim_under_way_brings(claims, queue):
    queue.door.clear()
    queue.ahead = 5
    queue.holds(1, 2, 3)
    async with serving(claims) as service:
        tasks = pull(claims, 2)
        await until(lambda: queue.asked == [(2, 5)])
        claims.close()
        assert await numbers(tasks) == [None, None]
        queue.door.set()
        await asyncio.wait_for(service, PATIENCE)
        assert queue.given_back == [1, 2, 3]
        assert await numbers(pull(claims)) == [None]
        assert queue.asked == [(2, 5)]


async def test_closing_gives_back_what_is_held_at_once(claims, queue):
    async with serving(claims):
        await fill(claims, queue, claimed(1), claimed(2), claimed(3))
        claims.close()
        assert sorted(queue.given_back) == [1, 2, 3]
        claims.close()
        assert await claims.next() is None
        assert sorted(queue.given_back) == [1, 2, 3]


async def test_closing_ends_a_service_that_waits(claims, queue):
    async with serving(claims) as service:
        await turns()
        assert not service.done()
        claims.close()
        await asyncio.wait_for(service, PATIENCE)
        assert queue.asked == []


async def test_closing_ends_a_service_that_found_nothing(claims, queue):
    async with serving(claims) as service:
        tasks = pull(claims, 2)
        await until(lambda: queue.asked)
        await turns()
        claims.close()
        await asyncio.wait_for(service, PATIENCE)
        assert await numbers(tasks) == [None, None]


# --- running dry ------------------------------------------------------------------------------------------------------


async def test_run_dry_waits_for_all_pullers_to_come_back_and_find_nothing(claims, queue):
    queue.holds(1, 2, 3)
    async with serving(claims):
        tasks = pull(claims, 2)
        dry = asyncio.create_task(claims.run_dry(2))
        assert await numbers(tasks) == [1, 2]
        await turns()
        assert not dry.done()
        tasks = pull(claims, 2)
        await until(tasks[0].done)
        await turns()
        assert not dry.done()
        pull(claims)
        assert await asyncio.wait_for(dry, PATIENCE) == 3


async def test_run_dry_waits_for_what_is_held_ahead(claims, queue):
    queue.ahead = 5
    queue.holds(1, 2, 3)
    async with serving(claims):
        dry = asyncio.create_task(claims.run_dry(1))
        for number in (1, 2, 3):
            assert await numbers(pull(claims)) == [number]
            await turns()
            assert not dry.done()
        pull(claims)
        assert await asyncio.wait_for(dry, PATIENCE) == 3


async def test_a_claim_that_was_under_way_does_not_make_it_dry(claims, queue):
    queue.door.clear()
    async with serving(claims):
        tasks = pull(claims, 2)
        await until(lambda: queue.asked == [(2, 0)])
        queue.holds(1)  # committed after that claim has looked
        dry = asyncio.create_task(claims.run_dry(2))
        await turns()
        queue.door.set()
        assert await numbers(tasks[:1]) == [1]
        await turns()
        assert not dry.done()
        pull(claims)
        assert await asyncio.wait_for(dry, PATIENCE) == 1


async def test_a_claim_that_left_something_out_does_not_make_it_dry(claims):
    left_out = [Haul(more=True), Haul(more=True), Haul([claimed(1)])]
    asked = []

    async def fetch(wanted: int, ahead: int, bytes_ahead: int) -> Haul:
        asked.append(wanted)
        return left_out.pop(0) if left_out else Haul()

    claims._fetch = fetch
    async with serving(claims):
        dry = asyncio.create_task(claims.run_dry(1))
        assert await numbers(pull(claims)) == [1]
        assert not dry.done()
        pull(claims)
        assert await asyncio.wait_for(dry, PATIENCE) == 1
        assert asked == [1, 1, 1, 1]


async def test_it_can_be_run_dry_again(claims, queue):
    async with serving(claims):
        pull(claims)
        assert await asyncio.wait_for(claims.run_dry(1), PATIENCE) == 0
        queue.holds(1, 2)
        again = asyncio.create_task(claims.run_dry(1))
        await turns()
        assert not again.done()
        assert await numbers(pull(claims)) == [2]
        pull(claims)
        assert await asyncio.wait_for(again, PATIENCE) == 2


async def test_running_dry_counts_what_was_delivered_before_it_was_asked_for(claims, queue):
    """Or a drain would take a job that still runs, and may come back to the queue, for one that was never there."""
    queue.holds(1)
    async with serving(claims):
        assert await numbers(pull(claims)) == [1]
        dry = asyncio.create_task(claims.run_dry(1))
        pull(claims)
        assert await asyncio.wait_for(dry, PATIENCE) == 1


# --- turns ------------------------------------------------------------------------------------------------------------


async def test_jobs_that_never_suspend_leave_what_is_held_until_the_claim_for_more_is_sent(claims, queue, clock):
    """Else a worker waits for each claim with nothing to do: many pullers empty the window in one turn of the loop."""
    queue.ahead = 100
    queue.holds(*range(1, 1_000))
    held_when_asked = []

    async def fetch(wanted: int, ahead: int, bytes_ahead: int) -> Haul:
        held_when_asked.append(len(claims._window))
        return await queue.fetch(wanted, ahead, bytes_ahead)

    async def work() -> None:
        rested = True
        while await claims.next(rested=rested):
            clock.forward(TURN / 8)
            rested = False

    claims._fetch = fetch
    pullers = [asyncio.create_task(work()) for _ in range(50)]
    async with serving(claims):
        await until(lambda: len(held_when_asked) > 3)
    await asyncio.wait_for(asyncio.gather(*pullers), PATIENCE)
    assert min(held_when_asked[1:4]) > 20


async def test_one_puller_is_enough_for_jobs_that_never_suspend(claims, queue, frozen):
    queue.ahead = 100
    queue.holds(*range(1, 31))
    ran: dict[int, int] = {}

    async def work(number: int) -> None:
        while await claims.next(rested=False):
            ran[number] = ran.get(number, 0) + 1

    pullers = [asyncio.create_task(work(number)) for number in range(10)]
    await turns()
    async with serving(claims):
        await turns()
    await asyncio.wait_for(asyncio.gather(*pullers), PATIENCE)
    assert list(ran.values()) == [30]


async def test_all_pullers_work_when_jobs_suspend_and_soon(claims, queue):
    queue.ahead = 100
    queue.holds(*range(1, 101))
    running, open_ = [], asyncio.Event()

    async def work(number: int) -> None:
        while await claims.next():
            running.append(number)
            await open_.wait()

    pullers = [asyncio.create_task(work(number)) for number in range(64)]
    await turns()
    async with serving(claims):
        await until(lambda: running)
        await turns()
        assert sorted(running) == list(range(64))
        open_.set()
        await until(lambda: len(running) == 100)
    await asyncio.wait_for(asyncio.gather(*pullers), PATIENCE)
