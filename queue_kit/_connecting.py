"""Connecting, for those who may be cancelled meanwhile: what has begun is let come to an end for a moment.

asyncpg forgets what it waits for when it is cancelled while its socket connects, and asyncio reports that as an error
that nobody has seen. A worker that is stopped as soon as it has started is often in such a moment.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

A_MOMENT = 0.25
"""Seconds; to connect to a server that is there takes a tenth of it."""


async def connect_whole(connecting: Coroutine[Any, Any, T], *, close: Callable[[T], Awaitable[None]]) -> T:
    """What `connecting` returns. When this is cancelled, that is awaited and closed; it is cancelled as well when it
    takes longer than a moment."""
    task = asyncio.create_task(connecting, name="queue_kit: connect")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_look)
        try:
            await asyncio.wait({task}, timeout=A_MOMENT)
            if task.done() and not task.cancelled() and task.exception() is None:
                await close(task.result())
        finally:
            task.cancel()
        raise


def _look(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # nobody asks for it any more, and asyncio would report that
