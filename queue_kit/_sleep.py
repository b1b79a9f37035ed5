"""When a worker asks to be notified. NOTIFY holds a global lock through the commit that sends it, so eight connections
that insert at once get 0.4 of the rate that they have without. A worker therefore says in its row that it sleeps, and
only then the database notifies; woken too often, it stays up and looks by itself until there is little to do.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

AFTER_FALLING_ASLEEP = (0.02, 0.08, 0.4)
"""Seconds between the looks of one that has just said that it sleeps: who inserted before that notifies nobody."""

OFTEN = 50
"""Wake-ups in a second that are too many, and jobs in a second that are too few to stay up for."""

LOOK_EVERY = 0.01
"""Seconds between two looks of a worker that stays up, up to eight times as long while it finds nothing."""


class Sleep:
    """Decides for one worker. `note()` writes `asleep` into its row, `look()` has it look for jobs, `started()` is how
    many jobs it has begun so far, `idle()` whether it could begin one now."""

    def __init__(
        self,
        *,
        note: Callable[[], Awaitable[None]],
        look: Callable[[], None],
        started: Callable[[], int],
        idle: Callable[[], bool],
    ) -> None:
        self._note = note
        self._look = look
        self._started = started
        self._idle = idle
        self._woken = 0
        self._too_often = asyncio.Event()
        self._since = time.monotonic()
        self.asleep = True

    def woken(self) -> None:
        """The database notified this worker."""
        now = time.monotonic()
        if now - self._since >= 1.0:
            self._since, self._woken = now, 0
        self._woken += 1
        if self._woken > OFTEN:
            self._too_often.set()
        self._look()

    async def serve(self) -> None:
        """Fall asleep and stay up in turn, for as long as this is awaited."""
        while True:
            self.asleep = True
            self._woken = 0
            self._too_often.clear()
            await self._note()
            await self._sleep()
            self.asleep = False
            await self._note()
            await self._stay_up()

    async def _sleep(self) -> None:
        for pause in (*AFTER_FALLING_ASLEEP, None):
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._too_often.wait()
                    return
            self._look()

    async def _stay_up(self) -> None:
        busy, pause = True, LOOK_EVERY
        while busy:
            before, until = self._started(), time.monotonic() + 1.0
            while time.monotonic() < until:
                seen = self._started()
                await asyncio.sleep(pause)
                self._look()
                pause = min(2 * pause, 8 * LOOK_EVERY) if self._started() == seen else LOOK_EVERY
            busy = not self._idle() or self._started() - before > OFTEN
