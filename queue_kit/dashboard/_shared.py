"""What many open pages look at: read once for all of them, and the less often the longer it takes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

FRESH = 1.0
"""Seconds for which what was read, or that it could not be read, is shown again."""

REST = 10.0
"""How many times as long as reading took it is not read again: looking uses a connection a tenth of the time."""


class Shared(Generic[T]):
    """A value that is read when somebody asks for it and the last one is not fresh any more. A failure is shared too:
    else all who wait would try in turn, and the last of them wait for the sum."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._last: asyncio.Task[T] | None = None
        self._until = 0.0

    async def get(self) -> T:
        """The value. Raises what reading raises."""
        if self._last is None or (self._last.done() and time.monotonic() >= self._until):
            self._last = asyncio.create_task(self._timed())
            self._last.add_done_callback(_seen)
        return await asyncio.shield(self._last)  # a visitor who leaves takes it from nobody

    async def _timed(self) -> T:
        began, rest = time.monotonic(), FRESH
        try:
            value = await self._read()
            rest = max(FRESH, (time.monotonic() - began) * REST)
            return value
        finally:
            self._until = time.monotonic() + rest


def _seen(task: asyncio.Task[T]) -> None:
    """Let asyncio not complain of a failure for which nobody waits any more."""
    if not task.cancelled():
        task.exception()
