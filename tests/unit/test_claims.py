"""Idle pullers and claimed jobs: one statement for all who wait, no wake-up lost, no job that nobody runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from queue_kit import Job
from queue_kit._claims import Claims
from queue_kit.job import Claimed
from tests.support import until

NOW = datetime(2026, 5, 1, tzinfo=UTC)


class Queue:
    """Stands for the database: jobs by number, the sizes of the claims, and a door that a claim waits at."""

    def __init__(self) -> None:
        self.jobs: list[int] = []
        self.asked: list[int] = []
        self.given_back: list[int] = []
        self.door = asyncio.Event()
        self.door.set()

    async def fetch(self, wanted: int) -> list[Claimed]:
        self.asked.append(wanted)
        taken, self.jobs = self.jobs[:wanted], self.jobs[wanted:]
        await self.door.wait()  # what was committed meanwhile is not seen
        return [claimed(number) for number in taken]

    async def give_back(self, job: Claimed) -> None:
        self.given_back.append(job.job.id)


def claimed(number: int) -> Claimed:
    return Claimed(Job(number, "name", {}, 5, NOW, NOW), claim_no=1)


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
async def claims(queue: Queue) -> AsyncIterator[Claims]:
    made = Claims(queue.fetch, queue.give_back)
    yield made
    made.close()


@contextlib.asynccontextmanager
async def serving(claims: Claims) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(claims.serve())
    try:
        yield task
    finally:
        claims.close()
        await asyncio.wait_for(task, 10)


def pull(claims: Claims, count: int = 1) -> list[asyncio.Task[Claimed | None]]:
    return [asyncio.create_task(claims.next()) for _ in range(count)]


async def numbers(tasks: list[asyncio.Task[Claimed | None]]) -> list[int | None]:
    got = await asyncio.wait_for(asyncio.gather(*tasks), 10)
    return [None if each is None else each.job.id for each in got]


async def turns(count: int = 20) -> None:
    """Let everything that can go on without a wake-up go on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_one_statement_claims_for_all_who_wait(claims, queue):
    queue.jobs = [1, 2, 3, 4, 5, 6]
    tasks = pull(claims, 5)
    await turns()
    async with serving(claims):
        assert await numbers(tasks) == [1, 2, 3, 4, 5]
        assert queue.asked == [5]
        assert queue.jobs == [6]


async def test_nothing_is_claimed_while_nobody_waits(claims, queue):
    queue.jobs = [1]
    async with serving(claims):
        claims.wake()
        await turns()
        assert queue.asked == []
        assert await numbers(pull(claims)) == [1]


async def test_jobs_go_to_whoever_waits_longest_and_one_wake_up_is_one_statement(claims, queue):
    async with serving(claims):
        tasks = pull(claims, 4)
        await until(lambda: queue.asked and not queue.jobs)
        await turns()
        before = len(queue.asked)
        queue.jobs = [7, 8]
        claims.wake()
        assert await numbers(tasks[:2]) == [7, 8]
        await turns()
        assert queue.asked[before:] == [4]
        assert not tasks[2].done()
        claims.close()
        assert await numbers(tasks) == [7, 8, None, None]


async def test_who_still_waits_after_a_full_claim_is_served_without_a_wake_up(claims, queue):
    queue.door.clear()
    queue.jobs = [1]
    async with serving(claims):
        first = pull(claims)
        await until(lambda: queue.asked == [1])
        later = pull(claims, 2)
        await turns()
        queue.jobs = [2, 3]
        queue.door.set()
        assert await numbers(first + later) == [1, 2, 3]
        assert queue.asked == [1, 2]


async def test_a_wake_up_during_a_claim_is_not_lost(claims, queue):
    queue.door.clear()
    async with serving(claims):
        tasks = pull(claims)
        await until(lambda: queue.asked == [1])
        queue.jobs = [1]
        claims.wake()
        queue.door.set()
        assert await numbers(tasks) == [1]
        assert queue.asked == [1, 1]


async def test_without_a_wake_up_an_empty_queue_is_not_asked_again(claims, queue):
    async with serving(claims):
        pull(claims, 3)
        await until(lambda: queue.asked)
        await turns(200)
        assert queue.asked == [3]


async def test_the_job_of_a_puller_that_was_cancelled_goes_to_the_next(claims, queue):
    queue.door.clear()
    queue.jobs = [1]
    async with serving(claims):
        gone, stays = pull(claims, 2)
        await until(lambda: queue.asked == [2])
        gone.cancel()
        await turns()
        queue.door.set()
        assert await numbers([stays]) == [1]
        assert queue.given_back == []


async def test_a_job_that_nobody_waits_for_any_more_is_given_back(claims, queue):
    queue.door.clear()
    queue.jobs = [1, 2]
    async with serving(claims):
        gone = pull(claims, 2)
        await until(lambda: queue.asked == [2])
        for task in gone:
            task.cancel()
        await turns()
        queue.door.set()
        await until(lambda: queue.given_back == [1, 2])
        queue.jobs = [3]
        assert await numbers(pull(claims)) == [3]


async def test_closing_sends_everybody_home_and_gives_back_what_a_claim_under_way_brings(claims, queue):
    queue.door.clear()
    queue.jobs = [1]
    async with serving(claims) as service:
        tasks = pull(claims, 2)
        await until(lambda: queue.asked == [2])
        claims.close()
        assert await numbers(tasks) == [None, None]
        queue.door.set()
        await asyncio.wait_for(service, 10)
        assert queue.given_back == [1]
        assert await numbers(pull(claims)) == [None]
        assert queue.asked == [2]


async def test_closing_ends_a_service_that_waits(claims, queue):
    async with serving(claims) as service:
        await turns()
        assert not service.done()
        claims.close()
        await asyncio.wait_for(service, 10)
        assert queue.asked == []


async def test_run_dry_waits_for_all_pullers_to_come_back_and_find_nothing(claims, queue):
    queue.jobs = [1, 2, 3]
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
        await asyncio.wait_for(dry, 10)
