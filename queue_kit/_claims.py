"""Idle pullers on one side, claimed jobs on the other. One loop claims for all who wait, so a wake-up costs one
statement and wakes one task, however many pullers there are. What it claims ahead waits in the window.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from queue_kit._pace import Pace
from queue_kit._window import Window
from queue_kit.job import Claimed

BYTES_AHEAD = 4_194_304
"""Payload, as text, that is held ahead at most."""

STALE = 1.0
"""Seconds after which a job held ahead goes back to the queue: its pullers turned out slower than they looked."""

TURN = 0.001
"""Seconds after which pullers whose jobs never suspend let others run, all of them together: among the others is the
claim that brings more, and what is held ahead must not be used up before it is sent."""

SPARE = 1.25
"""How many times as much as pullers took while the last claim was under way is held when the next one is sent; but half
of the window at least, and three quarters at most, since a claim for few jobs costs as much as one for many. With half
alone pullers had nothing to do for a twelfth of the time (small jobs: 4 % slower)."""


@dataclass(frozen=True, slots=True)
class Haul:
    """What a claim brought, best first, and whether there may be more."""

    jobs: Sequence[Claimed] = ()
    more: bool = False


class Claims:
    """Hands jobs to pullers.

    `fetch(wanted, ahead, bytes_ahead)` claims for free pullers and ahead of them, `give_back(job)` takes a job that
    nobody can run; nothing held ahead is handed out while not `ready()`.
    """

    def __init__(
        self,
        fetch: Callable[[int, int, int], Awaitable[Haul]],
        give_back: Callable[[Claimed], None],
        pace: Pace,
        *,
        ready: Callable[[], bool],
    ) -> None:
        self._fetch = fetch
        self._give_back = give_back
        self._pace = pace
        self._ready = ready
        self._window = Window()
        self._low = 0
        """How few jobs held ahead make the loop claim again: half of them, or as many as are taken until more come."""
        self._turn_ends = 0.0
        self._idle: deque[asyncio.Future[Claimed | None]] = deque()
        self._at_once = 1
        """How many idle pullers are served next."""
        self._serving = False
        """Whether idle pullers are served again in the next turn of the loop."""
        self._hungry = asyncio.Event()
        self._wakeup = asyncio.Event()
        self._dry = asyncio.Event()
        self._shedding: asyncio.TimerHandle | None = None
        self._pullers = 0
        self._dry_runs = 0
        self._delivered_when_dry = 0
        self.delivered = 0
        """How many jobs were handed to pullers so far."""
        self.closed = False
        self._eager = False
        """Whether to claim again whenever a puller comes back, for a drain."""

    @property
    def puller_waits(self) -> bool:
        """Whether a puller waits for a job that is not held ahead."""
        return len(self._idle) > self._at_hand

    @property
    def _at_hand(self) -> int:
        return len(self._window) if self._ready() else 0

    def wake(self) -> None:
        """There may be something to claim."""
        self._wakeup.set()

    def close(self) -> None:
        """Claim nothing more, send the waiting pullers home and give back what is held ahead."""
        self.closed = True
        while (puller := self._next_idle()) is not None:
            puller.set_result(None)
        self.shed()
        if self._shedding is not None:
            self._shedding.cancel()
        self._hungry.set()
        self._wakeup.set()

    def shed(self, *, claimed_before: float = math.inf) -> None:
        """Give back the jobs that are held ahead, or those of them that were claimed before this time."""
        for job in self._window.shed(before=claimed_before):
            self._give_back(job)

    async def next(self, *, rested: bool = True) -> Claimed | None:
        """The next job for one puller; `None` once there will be none. `rested` as in `at_once`."""
        job = self.at_once(rested=rested)
        return job if job is not None or self.closed else await self._wait()

    def at_once(self, *, rested: bool) -> Claimed | None:
        """The next job for one puller, if there is one for it now. It is `rested` when others had a turn since it asked
        last; when it is not, it gets one only until its own turn is over."""
        now = time.monotonic()
        if rested:
            self._turn_ends = now + TURN
        held = len(self._window)
        if not held or now >= self._turn_ends or self.closed or not self._ready():
            return None
        self.delivered += 1
        if held <= self._low:
            self._hungry.set()
        return self._window.pop()

    async def _wait(self) -> Claimed | None:
        puller: asyncio.Future[Claimed | None] = asyncio.get_running_loop().create_future()
        self._idle.append(puller)
        if self._window:  # its turn is over
            self._at_once = 1
            self._serve_soon()
        if self.puller_waits:
            self._hungry.set()
            if self._eager:
                self._wakeup.set()
        try:
            job = await puller
        except asyncio.CancelledError:
            given = None if puller.cancelled() else puller.result()
            if given is not None:  # at that very moment
                self._give_back(given)
            raise
        self._turn_ends = time.monotonic() + TURN
        return job

    async def run_dry(self, pullers: int) -> int:
        """Wait until all of this many pullers are idle and a claim for all of them finds nothing; returns how many
        jobs had been delivered by then."""
        self._dry_runs += 1  # a claim that is under way does not count
        self._eager = True
        self._pullers = pullers
        self._dry.clear()
        self._wakeup.set()
        await self._dry.wait()
        return self._delivered_when_dry

    async def serve(self) -> None:
        """Claim for whoever waits, and ahead, until closed."""
        while not self.closed:
            await self._hungry.wait()
            self._wakeup.clear()  # before the claim, or a wake-up between claim and wait would be lost
            idle, held = len(self._idle), self._at_hand
            wanted = max(idle - held, 0)
            room = max(self._pace.ahead() - max(len(self._window) - idle, 0), 0)
            dry_run = self._dry_runs if wanted == self._pullers and not self._window else None
            delivered = self.delivered
            haul = (
                await self._fetch(wanted, room, max(BYTES_AHEAD - self._window.size, 0)) if wanted or room else Haul()
            )
            self._take(haul, meanwhile=self.delivered - delivered)
            if not haul.jobs and not haul.more and dry_run == self._dry_runs:
                self._delivered_when_dry = self.delivered
                self._dry.set()
            if not self.puller_waits:
                self._hungry.clear()
            elif not haul.more and not self.closed:
                await self._wakeup.wait()

    def _take(self, haul: Haul, *, meanwhile: int) -> None:
        if self.closed:
            for job in haul.jobs:
                self._give_back(job)
            return
        # A job that lost a lease is never held ahead, so these come first.
        for job in haul.jobs:
            if job.lost and not self._deliver(job):
                self._give_back(job)
        self._window.put([job for job in haul.jobs if not job.lost], at=time.monotonic())
        self._serve_some()
        left = max(len(self._window) - len(self._idle), 0)
        self._low = min(max(int(meanwhile * SPARE), left // 2), left * 3 // 4) if haul.more else 0
        if self._window and self._shedding is None:
            self._shed_later()

    def _serve_some(self) -> None:
        """Serve idle pullers from the window: one, and if it suspends two more, then four. Jobs that never suspend need
        no more than one; to wake them all takes 1 us a job, and they would use up the window before the loop turns."""
        for _ in range(self._at_once):
            if not (self._window and self._ready() and self._deliver(self._window.best)):
                self._at_once = 1
                if self.puller_waits:
                    self._hungry.set()
                return
            self._window.pop()
        self._at_once *= 2
        self._serve_soon()

    def _serve_soon(self) -> None:
        if not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve_more)

    def _serve_more(self) -> None:
        self._serving = False
        self._serve_some()

    def _shed_later(self) -> None:
        self._shedding = asyncio.get_running_loop().call_later(STALE / 2, self._shed_stale)

    def _shed_stale(self) -> None:
        self._shedding = None
        self.shed(claimed_before=time.monotonic() - STALE)
        if self._window:
            self._shed_later()

    def _deliver(self, job: Claimed) -> bool:
        puller = self._next_idle()
        if puller is None:
            return False
        puller.set_result(job)
        self.delivered += 1
        return True

    def _next_idle(self) -> asyncio.Future[Claimed | None] | None:
        while self._idle:
            puller = self._idle.popleft()
            if not puller.done():
                return puller
        return None
