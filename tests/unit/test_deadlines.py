"""One timer for many deadlines: each is called at its time, once, whichever was added first."""

import asyncio

import pytest

from queue_kit._deadlines import Deadlines
from tests.support import until


class Late:
    """Notes the loop's time when it is called."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self) -> None:
        self.at.append(asyncio.get_running_loop().time())


@pytest.fixture
async def deadlines() -> Deadlines:
    return Deadlines()


async def test_each_is_called_once_and_not_before_its_time(deadlines):
    now = asyncio.get_running_loop().time()
    seconds = [0.03, 0.01, 0.0, 0.02]
    lates = [Late() for _ in seconds]
    for late, each in zip(lates, seconds, strict=True):
        deadlines.add(late, each)
    await until(lambda: all(late.at for late in lates))
    assert [len(late.at) for late in lates] == [1] * 4
    assert all(late.at[0] >= now + each for late, each in zip(lates, seconds, strict=True))


async def test_a_discarded_one_is_not_called_and_the_others_are(deadlines):
    gone, stays = Late(), Late()
    deadlines.add(gone, 0.01)
    deadlines.add(stays, 0.02)
    deadlines.discard(gone)
    deadlines.discard(gone)
    await until(lambda: stays.at)
    assert gone.at == []


async def test_one_that_is_added_later_may_be_due_sooner(deadlines):
    far, near = Late(), Late()
    deadlines.add(far, 60.0)
    deadlines.add(near, 0.01)
    await until(lambda: near.at)
    assert far.at == []


async def test_after_the_timer_of_a_discarded_one_the_rest_still_counts(deadlines):
    for _ in range(3):
        gone, stays = Late(), Late()
        deadlines.add(gone, 0.005)
        deadlines.discard(gone)
        deadlines.add(stays, 0.02)
        await until(lambda stays=stays: stays.at)
        assert gone.at == []
