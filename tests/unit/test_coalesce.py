"""Many awaits, few calls: what travels together, whose result is whose, and what an error or a cancellation touches."""

import asyncio
from collections.abc import Sequence

import pytest

from queue_kit._coalesce import Coalescer
from tests.support import until


class Flush:
    """A call that notes its batches and waits until it is let through; each result is its item's double."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.through = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.through.acquire()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return [2 * item for item in items]


@pytest.fixture
def flush() -> Flush:
    return Flush()


@pytest.fixture
def calls(flush: Flush) -> Coalescer[int, int]:
    return Coalescer(flush, name="test")


def submit(calls: Coalescer[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(calls.submit(item)) for item in items]


async def test_idle_an_item_travels_alone_and_at_once(calls, flush):
    (first,) = submit(calls, 1)
    await until(lambda: flush.batches == [[1]])
    flush.through.release()
    assert await first == 2
    (second,) = submit(calls, 2)
    await until(lambda: flush.batches == [[1], [2]])
    flush.through.release()
    assert await second == 4


async def test_what_ends_in_the_same_turn_of_the_loop_travels_together(calls, flush):
    tasks = submit(calls, 1, 2, 3)
    flush.through.release()
    assert await asyncio.gather(*tasks) == [2, 4, 6]
    assert flush.batches == [[1, 2, 3]]


async def test_what_arrives_during_a_call_goes_out_as_the_next_one(calls, flush):
    first = submit(calls, 1)
    await until(lambda: flush.batches)
    later = submit(calls, 2, 3)
    await asyncio.sleep(0)
    later += submit(calls, 4)
    await asyncio.sleep(0)
    assert flush.batches == [[1]]
    flush.through.release()
    await until(lambda: len(flush.batches) == 2)
    assert await asyncio.gather(*first) == [2]
    assert flush.batches == [[1], [2, 3, 4]]
    flush.through.release()
    assert await asyncio.gather(*later) == [4, 6, 8]


async def test_an_error_reaches_all_of_its_call_and_nobody_else(calls, flush):
    flush.error = ConnectionError("cut")
    failed = submit(calls, 1, 2)
    await until(lambda: flush.batches)
    fine = submit(calls, 3)
    await asyncio.sleep(0)
    flush.through.release()
    flush.through.release()
    assert [str(each) for each in await asyncio.gather(*failed, return_exceptions=True)] == ["cut", "cut"]
    assert await asyncio.gather(*fine) == [6]


async def test_the_item_of_a_cancelled_caller_still_goes_out_and_spoils_nothing(calls, flush):
    (first,) = submit(calls, 1)
    await until(lambda: flush.batches)
    waiting, neighbour = submit(calls, 2, 3)
    await asyncio.sleep(0)
    first.cancel()
    waiting.cancel()
    flush.through.release()
    flush.through.release()
    assert await neighbour == 6
    assert flush.batches == [[1], [2, 3]]
    assert first.cancelled()
    assert waiting.cancelled()


async def test_closing_ends_the_call_under_way_and_its_callers(calls, flush):
    task, *_ = submit(calls, 1)
    await until(lambda: flush.batches)
    await asyncio.wait_for(calls.close(), 10)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    flush.through.release()
    await asyncio.sleep(0)
    assert not flush.through.locked()  # nobody was left to take it


async def test_closing_twice_or_idle_is_harmless(calls):
    await calls.close()
    await calls.close()
