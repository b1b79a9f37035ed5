"""What many open pages look at: read once for all of them, and the less often the longer it takes."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

FRESH = 1.0
"""Seconds for which what was read is shown again."""

REST = 10.0
"""How many times as long as reading took it is not read again: looking uses a connection a tenth of the time."""


class Shared(Generic[T]):
    """A value that is read when somebody asks for it and the last one is not fresh any more."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._until = 0.0
        self._value: T | None = None

    async def get(self) -> T:
        """The value. Raises what reading raises."""
        async with self._lock:
            began = time.monotonic()
            if self._value is None or began >= self._until:
                self._value = await self._read()
                ended = time.monotonic()
                self._until = ended + max(FRESH, (ended - began) * REST)
            return self._value
