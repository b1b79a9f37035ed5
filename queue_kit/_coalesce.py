"""Many awaits, few calls. While a call is in flight, arrivals wait; when it returns, all who waited go out as the next
call. There is no timer: idle, an item travels alone and at once; under load a batch grows to fit the round trip.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
R = TypeVar("R")


class Coalescer(Generic[A, R]):
    """Turns single `await submit(item)`s into calls of `flush(items)`, which returns one result an item, in order."""

    def __init__(self, flush: Callable[[Sequence[A]], Awaitable[Sequence[R]]], *, name: str) -> None:
        self._flush = flush
        self._name = name
        self._waiting: list[tuple[A, asyncio.Future[R]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def submit(self, item: A) -> R:
        """The result for `item`. A cancelled caller stops waiting; the item still goes out."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run(), name=self._name)
        return await future

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # let what ends in this turn of the loop join
            batch, self._waiting = self._waiting, []
            try:
                results = await self._flush([item for item, _ in batch])
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                if isinstance(error, asyncio.CancelledError):
                    raise
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)

    async def close(self) -> None:
        """Give up what is still under way."""
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.wait({self._pump})
