"""A wait for the database runs out in its time, but not because the event loop was blocked meanwhile."""

import asyncio
import socket
import time

import pytest

from queue_kit._patience import A_MOMENT, Patience
from tests.support import turns


async def test_it_runs_out():
    with pytest.raises(TimeoutError):
        async with Patience(0.01):
            await asyncio.Event().wait()


async def test_without_seconds_it_waits_for_ever(clock):
    answer = asyncio.Event()

    async def wait() -> None:
        async with Patience(None):
            await answer.wait()

    waiting = asyncio.create_task(wait())
    await turns()
    clock.forward(1e6)
    await asyncio.sleep(2 * A_MOMENT)
    assert not waiting.done()
    answer.set()
    await waiting


async def test_who_is_cancelled_hears_no_timeout():
    async def wait() -> None:
        async with Patience(60):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("too_long", [0.0, 0.5 * A_MOMENT, 2 * A_MOMENT])
async def test_an_answer_that_comes_while_the_loop_is_blocked_is_heard(too_long):
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        loop.call_soon(there.send, b"answer")
        loop.call_soon(time.sleep, 0.02 + too_long)
        async with Patience(0.02):
            assert await loop.sock_recv(here, 6) == b"answer"


async def test_no_answer_after_a_block_is_no_answer():
    asyncio.get_running_loop().call_soon(time.sleep, 0.02 + 2 * A_MOMENT)
    with pytest.raises(TimeoutError):
        async with Patience(0.02):
            await asyncio.Event().wait()
