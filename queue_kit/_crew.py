"""The tasks of a started worker: N pullers, and beside them the claim, the lease keeper, the pulse and the listener.

One crew lives from a start to its stop. It raises nothing into the application that hosts it; no database error and no
handler ends it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit._claims import Claims
from queue_kit._endings import Ending
from queue_kit._handler import Handler
from queue_kit._history import History
from queue_kit._intake import Intake
from queue_kit._leases import Leases
from queue_kit._link import Link
from queue_kit._log import BackgroundLog
from queue_kit._pace import Pace
from queue_kit._pulse import NUDGE_PAUSE, Pulse
from queue_kit._run import Limits
from queue_kit._scan import Scan
from queue_kit._sessions import Sessions
from queue_kit._sleep import Sleep
from queue_kit._spine import Spine
from queue_kit._store import Store
from queue_kit._wakeup import Listener, on_commit
from queue_kit._watchdog import Watchdog
from queue_kit.errors import ShuttingDown
from queue_kit.hooks import Observers, WorkerState
from queue_kit.job import Verdict, log_fields

_logger = BackgroundLog("queue_kit.worker")

_COMES_BACK = (Verdict.retried, Verdict.snoozed)

LEAVING = 0.3
"""Seconds at most at the end of a stop that are kept for taking leave of the database."""


class Crew:
    """Everything that lives from one start to its stop."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        handlers: Mapping[str, Handler[Any]],
        limits: Limits,
        observers: Observers,
        *,
        engine: AsyncEngine,
        parallel_count: int,
        poll_interval: float,
        prefetch: int | None,
        listen: bool | AsyncEngine,
        gate: asyncio.Semaphore,
    ) -> None:
        self.store = store
        self._sessions = sessions
        self._observers = observers
        self._engine = engine
        self._listen = listen
        self._cancel_grace = limits.cancel_grace
        self._parallel_count = parallel_count
        self._link = Link(lease=store.lease, on_change=self._announce, on_trouble=self._probe)
        # While one of our handlers holds SQLite's write lock nobody can claim its jobs, so no lease lapses meanwhile.
        self._leases = Leases(store, protected=lambda: store.embedded and gate.locked())
        pace = Pace(parallel_count, most=prefetch)
        scan = Scan(strict=pace.strict)
        self.spine = Spine(
            handlers,
            limits,
            store=store,
            leases=self._leases,
            link=self._link,
            pace=pace,
            sessions=sessions,
            observers=observers,
            on_settled=self._settled,
            on_returned=self._wake,  # a puller that became free meanwhile may have looked too early
            on_wedged=self._count_wedged,
        )
        self._intake = Intake(
            store,
            self._leases,
            self.spine,
            scan,
            parallel_count=parallel_count,
            stopping=lambda: self._claims.closed,
            wake=self._wake,
        )
        self._claims = Claims(self._intake.fetch, self.spine.give_back, pace, ready=lambda: self.healthy)
        self._pulse = Pulse(
            store, self._link, scan, poll_interval=poll_interval, wake=self._wake, check_in=self._check_in
        )
        self._history = History(store, guarded=self._guarded)
        self._watchdog = Watchdog(lambda: [*self._leases.runs(), *self.spine.wedged.values()], lease=store.lease)
        self._sleep: Sleep | None = None
        self._renew_now = asyncio.Event()
        self._checking_in = asyncio.Lock()
        """Or the row could be left with what an earlier check-in said, which was overtaken on its way."""
        self._pullers: set[asyncio.Task[None]] = set()
        self._claiming: asyncio.Task[None] | None = None
        self._main: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._exhausted = False

    @property
    def healthy(self) -> bool:
        """Whether it can claim and run."""
        return self._link.is_up and not self._exhausted

    # --- from start to stop -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start all tasks."""
        self._main = asyncio.create_task(self._serve(), name="queue_kit: worker")
        self._watchdog.start()
        self._announce("started")

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._parallel_count):
                self._pullers.add(self._serving(group, self._pull, f"queue_kit: puller {number}"))
            self._claiming = self._serving(group, self._claims.serve, "queue_kit: claim")
            self._serving(group, self._leases.watch, "queue_kit: watch leases")
            self._serving(group, self._keep_leases, "queue_kit: renew leases")
            self._serving(group, self._pulse.serve, "queue_kit: pulse")
            self._serving(group, self._history.serve, "queue_kit: history")
            if self.store.embedded:
                self._unsubscribe = on_commit(self._engine, committing=self._heard_early, committed=self._pulse.nudge)
            elif self._listen is not False:
                engine = self.store.engine if self._listen is True else self._listen
                self._sleep = Sleep(
                    note=self._note_sleep,
                    look=self._heard,
                    started=lambda: self._claims.delivered,
                    idle=lambda: self._claims.puller_waits,
                )
                listener = Listener(
                    engine, on_job=self._sleep.woken, on_cancel=self._renew_now.set, on_change=self._announce
                )
                self._serving(group, listener.serve, "queue_kit: listen")
                self._serving(group, self._sleep.serve, "queue_kit: sleep")

    def _serving(self, group: asyncio.TaskGroup, serve: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        async def guarded() -> None:
            while True:
                try:
                    return await serve()
                except asyncio.CancelledError:
                    if self._main is None or self._main.cancelling():
                        raise
                    _logger.exception("the worker's task %r was cancelled by somebody and is started again", name)
                except Exception:
                    # A defect of ours must not end the siblings: in a task group one failure cancels all.
                    _logger.exception("the worker's task %r failed and is started again", name)
                    await asyncio.sleep(1.0)

        return group.create_task(guarded(), name=name)

    async def drain(self) -> None:
        """Work until nothing is due."""
        self._intake.thorough = True
        self.begin()
        delivered, busy = 0, True
        while busy:
            moved = await self._pulse.sweep() == 0
            before, delivered = delivered, await self._claims.run_dry(self._parallel_count)
            # What was delivered since is written only now, and may have come back to the queue.
            busy = delivered > before or moved or self._intake.holds_back
            await self.spine.flushed()

    def close(self) -> None:
        """Claim and begin nothing from here on."""
        self._claims.close()
        for run in self._leases.runs():
            if not run.begun:
                run.abort(ShuttingDown("the worker stops"))

    async def end(self, grace: float) -> bool:
        """Stop, in `grace + cancel_grace` at the latest; returns whether every handler has ended."""
        self._announce("stopping")
        deadline = time.monotonic() + grace + self._cancel_grace
        leaving = min(max(self._cancel_grace / 4, 0.1), LEAVING)
        self.close()
        working = set(self._pullers)
        if self._claiming is not None and self._link.is_up:  # down, it would wait with nothing to give back
            working.add(self._claiming)
        if working:
            await asyncio.wait(working, timeout=grace)
        for run in self._leases.runs():
            run.abort(ShuttingDown("the worker stops"), grace=self._cancel_grace * 0.6)
        if any(not task.done() for task in working):
            await asyncio.wait(working, timeout=max(deadline - leaving - time.monotonic(), 0.05))
        with suppress(TimeoutError):
            async with asyncio.timeout(max(deadline - leaving - time.monotonic(), 0.05)):
                await self.spine.flushed()
        self._leaving = asyncio.create_task(self._leave(), name="queue_kit: leave")
        await asyncio.wait({self._leaving}, timeout=max(deadline - time.monotonic(), leaving))
        self._announce("stopped")
        return not self.spine.wedged

    async def _leave(self) -> None:
        self._watchdog.stop()
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait({self._main})
        if len(self._leases):
            _logger.warning("%d jobs could not be given back; their leases will lapse", len(self._leases))
        await self.spine.close()
        if self._link.is_up:
            with suppress(Exception):
                await self._history.finish()
            with suppress(Exception):
                await self.store.depart()
        self._sessions.close()
        with suppress(Exception):
            await self.store.dispose()

    # --- the tasks ----------------------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        rested = True
        while True:
            # At once where that can be: a coroutine takes 0.2 us of a small job's 15.
            claimed = self._claims.at_once(rested=rested) or await self._claims.next(rested=False)
            if claimed is None:
                return
            rested = False
            try:
                if self._claims.closed:
                    self.spine.give_back(claimed)
                else:
                    rested = await self.spine.work(claimed)
            except Exception:
                job = claimed.job
                _logger.exception("job %s was not settled; its lease will lapse", job.id, extra=log_fields(job))
                self._leases.drop([claimed])
            except asyncio.CancelledError:
                if not self._claims.closed:  # this puller alone was cancelled, by somebody
                    self._leases.drop([claimed])
                raise

    async def _keep_leases(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._leases.renewal_pause()):
                    await self._renew_now.wait()
            self._renew_now.clear()
            await self._guarded(self._renew_and_check_in)

    async def _renew_and_check_in(self) -> None:
        await self._leases.renew()
        await self._check_in()

    async def _note_sleep(self) -> None:
        await self._guarded(self._check_in)

    async def _guarded(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write when the database is there; no error of it ends a worker, and the next round writes again."""
        await self._link.wait_up()
        try:
            await write()
        except Exception as error:  # noqa: BLE001
            self._link.failed(error)

    async def _check_in(self) -> None:
        """Note in the worker's row that it is alive."""
        async with self._checking_in:
            asleep = self._sleep is not None and self._sleep.asleep
            await self.store.check_in(len(self._leases.runs()), asleep=asleep)

    # --- what they tell each other ------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._claims.wake()

    def _heard(self) -> None:
        self._claims.wake()
        self._pulse.nudge()

    def _heard_early(self) -> None:
        """Claim now, which waits for the lock of the commit; look when that is over, since its connection may stay
        open and never say so."""
        self._claims.wake()
        self._pulse.nudge(NUDGE_PAUSE)

    def _count_wedged(self) -> None:
        exhausted = len(self.spine.wedged) > self._parallel_count
        if exhausted is self._exhausted:
            return
        self._exhausted = exhausted
        if exhausted:
            _logger.error("%d handlers refuse to end: nothing more is claimed", len(self.spine.wedged))
            self._claims.shed()
        else:
            self._claims.wake()
        self._announce("unhealthy" if exhausted else "healthy")

    def _probe(self) -> None:
        self._pulse.nudge(self._link.backoff())

    def _settled(self, runs: Sequence[Ending]) -> None:
        self._history.add(runs)
        for ending in runs:
            outcome = ending.outcome
            if outcome.verdict in _COMES_BACK:
                self._pulse.nudge(outcome.delay)
            elif ending.claimed.cron_name is not None:
                self._pulse.nudge()  # its next tick is stored now
        if self._intake.holds_back:
            self._claims.wake()

    def _announce(self, state: str) -> None:
        worker_id = self.store.worker_id
        _logger.info("worker %s: %s", worker_id, state, extra={"worker_id": str(worker_id), "worker_state": state})
        self._observers.worker_state(WorkerState(worker_id, state))
