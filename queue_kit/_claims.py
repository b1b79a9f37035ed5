"""Idle pullers on one side, claimed jobs on the other. One loop claims for all who wait, so a wake-up costs one
statement and wakes one task, however many pullers there are.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from queue_kit.job import Claimed


class Claims:
    """Hands jobs to pullers. `fetch(n)` claims up to n jobs; `give_back(job)` takes one that nobody can run."""

    def __init__(
        self, fetch: Callable[[int], Awaitable[list[Claimed]]], give_back: Callable[[Claimed], Awaitable[None]]
    ) -> None:
        self._fetch = fetch
        self._give_back = give_back
        self._idle: deque[asyncio.Future[Claimed | None]] = deque()
        self._hungry = asyncio.Event()
        self._wakeup = asyncio.Event()
        self._dry = asyncio.Event()
        self._pullers = 0
        self._delivered = 0
        self.closed = False
        self._eager = False
        """Whether to claim again whenever a puller comes back, for a drain."""

    def wake(self) -> None:
        """There may be something to claim."""
        self._wakeup.set()

    def close(self) -> None:
        """Claim nothing more and send the waiting pullers home."""
        self.closed = True
        while self._idle:
            self._deliver(None)
        self._hungry.set()
        self._wakeup.set()

    async def next(self) -> Claimed | None:
        """The next job for one puller; `None` once there will be none."""
        if self.closed:
            return None
        puller: asyncio.Future[Claimed | None] = asyncio.get_running_loop().create_future()
        self._idle.append(puller)
        self._hungry.set()
        if self._eager:
            self._wakeup.set()
        return await puller

    async def run_dry(self, pullers: int) -> int:
        """Wait until all of this many pullers are idle and a claim for all of them finds nothing; returns how many
        jobs they were given meanwhile."""
        before = self._delivered
        self._eager = True
        self._pullers = pullers
        self._dry.clear()
        self._wakeup.set()
        await self._dry.wait()
        return self._delivered - before

    async def serve(self) -> None:
        """Claim for whoever waits, until closed."""
        while not self.closed:
            await self._hungry.wait()
            self._wakeup.clear()  # before the claim, or a wake-up between claim and wait would be lost
            wanted = len(self._idle)
            jobs = await self._fetch(wanted) if wanted else []
            for job in jobs:
                if self.closed or not self._deliver(job):
                    await self._give_back(job)
                else:
                    self._delivered += 1
            if not jobs and wanted == self._pullers:
                self._dry.set()
            if not self._idle:
                self._hungry.clear()
            elif len(jobs) < wanted and not self.closed:
                await self._wakeup.wait()

    def _deliver(self, job: Claimed | None) -> bool:
        while self._idle:
            puller = self._idle.popleft()
            if not puller.done():
                puller.set_result(job)
                return True
        return False
