"""How long the database has to answer, in time in which this process could have heard it: behind a handler that blocks
the event loop, an answer waits unread, and the database is no less there.
"""

import asyncio
from types import TracebackType

A_MOMENT = 0.1
"""Seconds in which what came while the loop was blocked is read; a timer is as late as that only when it is blocked."""


class Patience:
    """`asyncio.timeout(seconds)`, except that it does not run out while the event loop is blocked."""

    _timer: asyncio.TimerHandle | None = None

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        if self._seconds is not None:
            self._wait(self._seconds, last=False)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _wait(self, seconds: float, *, last: bool) -> None:
        due = self._loop.time() + seconds
        self._timer = self._loop.call_at(due, self._over, due, last)

    def _over(self, due: float, last: bool) -> None:  # noqa: FBT001 - call_at passes no keywords
        now = self._loop.time()
        if last and now - due < A_MOMENT:
            self._timeout.reschedule(now)
        else:
            self._wait(A_MOMENT, last=True)
