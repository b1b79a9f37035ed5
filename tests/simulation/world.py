"""One seed, from its plan to its verdict: real crews over the simulated network, in one virtual loop.

First comes the chaos of the plan; then the weather clears, and every job must end; then the workers are idle, must be
quiet, and still find what is new; one may die, and another takes over; as many jobs as there are pullers must run at
once; at last all workers are stopped.
"""

import asyncio
import contextlib
import gc
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import UUID

from queue_kit import _crew
from queue_kit._crew import Crew
from queue_kit._link import LONGEST_WAIT
from queue_kit._run import Limits
from queue_kit._sleep import OFTEN
from queue_kit.event import AbortToken
from queue_kit.hooks import Observers
from queue_kit.job import Claimed
from tests.simulation.database import Database, Row
from tests.simulation.handlers import HANDLERS, RunRecord, Stage
from tests.simulation.loop import Process, VirtualLoop, outside, run, virtual_time
from tests.simulation.network import LONGEST_WAY, Outage, SimulatedListener, State, Weather, Wire
from tests.simulation.plan import Blow, JobPlan, Plan, WorkerPlan, plan_for
from tests.simulation.rules import MOMENT, Log, Rules
from tests.simulation.store import ENGINE, SimulatedSessions, SimulatedStore

RECOVERY = 3.0
"""Seconds in which everybody has found out that the database is there again."""

SLOWEST_TRY = 5.0
"""Seconds that a run and its retry pause take, all jobs behind one puller."""

IDLE_SECONDS = 2.5

DOWN_SECONDS = 6.0

NOTICED = 5.0
"""Seconds in which everybody has found out that the database is away; a standby answers all but writes."""

PICKED_UP = 0.8
"""Seconds within which a worker that listens begins a job: the last look of one that falls asleep comes after 0.5."""

MOST_IN_A_SECOND = 120
"""Statements that a worker with a few pullers may send in a second of work and trouble: twice what was ever seen."""

Line = tuple[float, str, str]


@dataclass(slots=True)
class Report:
    """What a seed showed."""

    plan: Plan
    broken: list[str]
    counts: dict[str, int]
    seconds: float
    turns: int
    trace: list[Line]


def simulate(seed: int, *, trace: bool = False) -> Report:
    """Run one seed."""
    gc.disable()  # it would run at other times in each run, and takes a third of the time
    try:
        loop = VirtualLoop()
        world = World(loop, plan_for(seed), trace=trace)
        listener = mock.patch.object(_crew, "Listener", SimulatedListener)
        with virtual_time(loop, seed), Log(world.rules), listener:
            run(loop, world.play)
    finally:
        gc.enable()
    rules = world.rules
    return Report(world.plan, rules.broken, dict(rules.counts), loop.time(), loop.turns, world.trace)


class World:
    """Everything in one simulation."""

    def __init__(self, loop: VirtualLoop, plan: Plan, *, trace: bool) -> None:
        self.loop = loop
        self.plan = plan
        self.trace: list[Line] = []
        self._tracing = trace
        self.chance = random.Random(f"world {plan.seed}")
        self.rules = Rules(loop, self.note, plan.workers[0].lease)
        self.database = Database(loop, self.rules)
        self.rules.rows = self.database.rows
        self.database.on_claim = self._borrow
        self.weather = Weather(plan.fails, plan.latency, plan.outages, plan.refusals)
        self.stage = Stage(loop, self.kill, self.rules.begun)
        self._names = itertools.count()
        self.workers: list[Worker] = []
        """All that ever were."""
        self.slots: list[Worker] = []
        """Who works now, in the order of the plan."""
        self._finishing = False

    def note(self, who: str, *words: str) -> None:
        """A line of the trace."""
        if self._tracing:
            self.trace.append((self.loop.time(), who, " ".join(words)))

    # --- the play -----------------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """All of it."""
        self.slots = [self._start(number, plan) for number, plan in enumerate(self.plan.workers)]
        for job in self.plan.jobs:
            self._at(job.at, self._add, job)
        for blow in self.plan.blows:
            self._at(blow.at, self._strike, blow)
        if self.plan.drains_at is not None:
            self._at(self.plan.drains_at, self._drain)
        await asyncio.sleep(self.plan.seconds)
        await self._calm()
        if await self._all_ended():
            await self._idle()
            await self._wake_up()
            await self._take_over()
            await self._meet()
        await self._finish()
        self.rules.judge()

    async def _calm(self) -> None:
        """The trouble ends, and every place has a worker again."""
        self.note("world", "the weather clears")
        self.weather.fails = 0.0
        self.database.on_claim = None
        self.weather.outages = self.weather.refusals = ()
        for worker in self.slots:
            worker.factory_fails_until = 0.0
            while worker.process.alive and worker.process.frozen:
                await asyncio.sleep(MOMENT)
        for row in self.database.rows.values():
            if row.locked_by == "somebody":
                self.database.unlock(row)
        for number in range(len(self.slots)):
            self._restart(number)

    async def _all_ended(self) -> bool:
        """Whether every job ended, and then every handler."""
        rows = self.database.rows
        tries = sum(job.tries for job in self.plan.jobs)
        in_time = 60.0 + 20 * self.plan.workers[0].lease + SLOWEST_TRY * tries
        if not await self._until(lambda: all(row.ended for row in rows.values()), in_time):
            for row in rows.values():
                if not row.ended:
                    self.rules.breach(f"job {row.id} {row.name} never ended: {row}")
            return False
        if not await self._until(lambda: not any(map(self._has_runs, self.workers)), 30.0):
            self.rules.breach("handlers go on though every job has ended")
        if not await self._until(lambda: all(worker.is_over for worker in self.workers if worker.drains), 10.0):
            self.rules.breach("a worker still drains though every job has ended")
        return True

    async def _idle(self) -> None:
        """Nothing is to be done: nobody does much."""
        for worker in self.workers:
            if worker.wire.most_in_a_second > MOST_IN_A_SECOND:
                self.rules.breach(f"{worker.process.name} sent {worker.wire.most_in_a_second} statements in a second")
        self.note("world", "all is quiet")
        await asyncio.sleep(RECOVERY if self.plan.fails or self.plan.outages or self.plan.refusals else 0.5)
        began, before = self.loop.time(), [worker.process.turns for worker in self.slots]
        await asyncio.sleep(IDLE_SECONDS)
        for worker, turns_before in zip(self.slots, before, strict=True):
            sent, turns = worker.wire.sent_since(began), worker.process.turns - turns_before
            rounds = IDLE_SECONDS / worker.plan.poll_interval + 3 * IDLE_SECONDS / worker.plan.lease + 2
            if sent > rounds + (6 if worker.plan.listens else 1):  # the looks of one that has just fallen asleep
                self.rules.breach(f"{worker.process.name} sent {sent} statements in {IDLE_SECONDS} idle seconds")
            if turns > 3 * 20 * IDLE_SECONDS / worker.plan.lease + 20 * rounds:
                self.rules.breach(f"{worker.process.name} took {turns} turns in {IDLE_SECONDS} idle seconds")

    async def _wake_up(self) -> None:
        """Who listens begins a job soon, also one whose transaction was open while the worker fell asleep."""
        if not any(worker.plan.listens for worker in self.slots):
            return
        bursts = len(self.slots) == 1 and self.chance.random() < 0.5
        if bursts:  # woken so often, it stays up for a second or two
            for _ in range(2 * OFTEN):
                self.database.add("quick")
                await asyncio.sleep(0.005)
            await self._until(lambda: all(row.ended for row in self.database.rows.values()), 20.0)
        for _ in range(12 if bursts else 3):
            await asyncio.sleep(self.chance.uniform(0.05, 0.3))
            open_for = self.chance.choice((0.0, 0.01, 0.1, 0.3))
            row = self.database.add("quick", commits_in=open_for)
            if not await self._until(lambda row=row: bool(self.rules.runs.get(row.id)), open_for + PICKED_UP):
                self.rules.breach(f"job {row.id} was not begun within {PICKED_UP} s, though a worker listens")
            await self._until(lambda row=row: row.ended, 1.0)

    async def _take_over(self) -> None:
        """A worker dies: another one begins its job within a lease and a poll."""
        if not self.plan.takes_over or len(self.slots) == 1:
            return
        row = self.database.add("obey")
        if not await self._until(lambda: bool(self.rules.runs.get(row.id)), 5.0):
            self.rules.breach("an idle worker does not find a job")
            return
        (run,) = self.rules.runs[row.id]
        run.process.kill()
        plans = [worker.plan for worker in self.slots]
        ways = 7 * LONGEST_WAY * self.plan.latency  # of the last renewal, two looks and a claim
        in_time = plans[0].lease + max(plan.poll_interval for plan in plans) + ways + 2 * MOMENT
        if not await self._until(lambda: len(self.rules.runs[row.id]) == 2, in_time):
            self.rules.breach(f"nobody took job {row.id} over from {run.process.name} within {in_time:.2f} s")
        self.database.cancel(row)
        for number in range(len(self.slots)):
            self._restart(number)
        if not await self._until(lambda: row.ended, 10.0):
            self.rules.breach(f"job {row.id} was to be cancelled, and goes on")

    async def _meet(self) -> None:
        """No puller was lost: as many jobs as there are run at once, also beside a handler that refuses to end."""
        if self.plan.meets_beside_a_wedge:
            wedged = self.database.add("wedge", max_retry_count=1)
            await self._until(lambda: wedged.ended, 20.0)
        rendezvous = self.stage.rendezvous
        rendezvous.wanted = sum(worker.plan.parallel_count for worker in self.slots)
        self.note("world", f"{rendezvous.wanted} jobs meet")
        for _ in range(rendezvous.wanted):
            self.database.add("meet")
        if not await self._until(rendezvous.met.is_set, 20.0):
            self.rules.breach(f"of {rendezvous.wanted} pullers {rendezvous.most} ran jobs at once")

    async def _finish(self) -> None:
        """Stop all, in the midst of work, in good weather or in bad."""
        kinds = ("obey", "obey", "nap", "long", "refuse")
        last = [self.database.add(self.chance.choice(kinds)) for _ in range(2 * len(self.slots))]
        if self.chance.random() < 0.5:  # so many that some are held ahead
            last += [self.database.add("nap", priority=1) for _ in range(40)]
        await self._until(lambda: any(row.worker is not None for row in last), 2.0)
        await asyncio.sleep(self.chance.uniform(0.0, 1.0))
        if self.plan.ends_in_an_outage:
            await self._go_down()
        self._finishing = True
        if self.chance.random() < 0.5:
            self.stage.let_go.set()
        for worker in self.slots:
            worker.stop()
        await self._until(lambda: all(worker.is_over for worker in self.slots), 30.0)
        await asyncio.sleep(1.0)
        left = [self._look_behind(worker) for worker in self.workers]
        await asyncio.sleep(MOMENT)  # a handler that has just ended leaves a session to be closed
        for worker, tasks in zip(self.workers, left, strict=True):
            for task in tasks:
                if not task.done():
                    self.rules.breach(f"{worker.process.name} has stopped, but left {task.get_name()!r}")

    async def _go_down(self) -> None:
        """The database goes away: one looks now and then whether it is back."""
        state = self.chance.choice((State.refused, State.silent, State.read_only))
        self.note("world", f"the database is {state.name}")
        self.weather.outages = [Outage(self.loop.time(), float("inf"), state)]
        await asyncio.sleep(NOTICED)
        began, before = self.loop.time(), [worker.process.turns for worker in self.slots]
        await asyncio.sleep(DOWN_SECONDS)
        for worker, turns_before in zip(self.slots, before, strict=True):
            sent, turns = worker.wire.sent_since(began), worker.process.turns - turns_before
            if sent > DOWN_SECONDS / min(worker.plan.lease / 6, LONGEST_WAIT / 2) + 1:
                self.rules.breach(f"{worker.process.name} sent {sent} statements in {DOWN_SECONDS} s of an outage")
            if turns > 3 * 20 * DOWN_SECONDS / worker.plan.lease + 40 * DOWN_SECONDS:
                self.rules.breach(f"{worker.process.name} took {turns} turns in {DOWN_SECONDS} s of an outage")

    def _look_behind(self, worker: "Worker") -> "list[asyncio.Task[Any]]":
        """The tasks that a worker that was stopped has left."""
        name = worker.process.name
        if not worker.process.alive or worker.process.frozen:
            return []
        if worker in self.slots and not self.plan.ends_in_an_outage:
            for row in self.database.leased_by(worker.id):
                self.rules.breach(f"{name} has stopped, but holds job {row.id} {row.name}")
        return [
            task
            for task in worker.process.tasks
            if not task.done() and not any(each.runs for each in self._runs_of(worker, task))
        ]

    def _runs_of(self, worker: "Worker", task: "asyncio.Task[Any]") -> list[RunRecord]:
        """The run that a task belongs to, if it is a handler's."""
        if not task.get_name().startswith("queue_kit: job "):
            return []
        runs = self.rules.runs.get(int(task.get_name().split()[2]), [])
        return [each for each in runs if each.process is worker.process]

    def _has_runs(self, worker: "Worker") -> bool:
        return any(each.runs and each.process is worker.process for runs in self.rules.runs.values() for each in runs)

    # --- what happens -------------------------------------------------------------------------------------------------

    def _add(self, job: JobPlan) -> None:
        row = self.database.add(job.kind, priority=job.priority, delay=job.delay, max_retry_count=job.tries)
        self.stage.jobs[row.id] = job

    def _strike(self, blow: Blow) -> None:
        self.note("world", f"{blow.what} {blow.whom} for {blow.seconds:.2f} s")
        if blow.what in ("lock", "cancel"):
            row = self.database.rows.get(blow.whom + 1)
            if row is not None:
                self._touch(row, blow)
            return
        worker = self.slots[blow.whom]
        if not worker.process.alive:
            return
        match blow.what:
            case "freeze":
                worker.process.freeze(blow.seconds)
            case "kill":
                self.kill(worker.process)
            case "stop":
                worker.stop()
                self._at(blow.seconds, self._restart, blow.whom)
            case _:
                self.rules.excused = True
                worker.factory_fails_until = self.loop.time() + blow.seconds

    def _borrow(self, held: list[Row]) -> None:
        """While a claim was on its way, leases of jobs that wait for a puller there lapsed."""
        for row in held:
            runs = any(run.runs for run in self.rules.runs.get(row.id, ()))
            if row.locked_by is None and not runs and self.chance.random() < self.plan.borrows:
                self.rules.counts["borrowed"] += 1
                self.database.borrow(row, lost=self.chance.randint(0, 1))

    def _touch(self, row: Row, blow: Blow) -> None:
        if blow.what == "cancel":
            self.database.cancel(row)
        elif row.locked_by is None:
            row.locked_by = "somebody"
            self._at(blow.seconds, self._unlock, row)

    def _unlock(self, row: Row) -> None:
        if row.locked_by == "somebody":
            self.database.unlock(row)

    def kill(self, process: Process) -> None:
        """End a process; another one takes its place a little later."""
        worker = next(each for each in self.workers if each.process is process)
        self.note("world", f"{process.name} dies")
        process.kill()
        self._at(1.0, worker.sessions.hang_up)
        if worker in self.slots:
            self._at(0.5, self._restart, self.slots.index(worker))

    def _restart(self, number: int) -> None:
        if not self.slots[number].works and not self._finishing:
            self.slots[number] = self._start(number, self.slots[number].plan)

    def _start(self, number: int, plan: WorkerPlan) -> "Worker":
        worker = Worker(self, number, f"worker {number}.{next(self._names)}", plan)
        self.workers.append(worker)
        return worker

    def _drain(self) -> None:
        drainer = Worker(self, len(self.slots), "drainer", self.plan.workers[0], drains=True)
        self.workers.append(drainer)

    def _at(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self.loop.call_later(seconds, call, *args, context=outside())

    async def _until(self, holds: Callable[[], bool], seconds: float) -> bool:
        ends = self.loop.time() + seconds
        while not holds():
            if self.loop.time() > ends:
                return False
            await asyncio.sleep(MOMENT)
        return True


class Worker:
    """A process with a crew, from its start to its stop or death."""

    def __init__(self, world: World, number: int, name: str, plan: WorkerPlan, *, drains: bool = False) -> None:
        self._world = world
        self.drains = drains
        self.plan = plan
        self.id = UUID(int=world.chance.getrandbits(128))
        self.process = Process(world.loop, name)
        self.wire = Wire(world.loop, world.database, self.process, number, world.weather, world.chance, world.note)
        self.factory_fails_until = 0.0
        self.crew: Crew | None = None
        self._stopping_at: float | None = None
        self._stopped = False
        world.database.asleep_until[self.id] = -math.inf
        self.process.spawn(self._work(), f"{name} starts")

    @property
    def works(self) -> bool:
        """Whether it neither died nor was stopped."""
        return self.process.alive and self._stopping_at is None

    @property
    def is_over(self) -> bool:
        return self._stopped or not self.process.alive

    async def _work(self) -> None:
        world, plan = self._world, self.plan
        store = SimulatedStore(
            self.wire,
            worker_id=self.id,
            names=sorted(HANDLERS),
            lease=plan.lease,
            deletes=plan.deletes,
            on_renewal=lambda claimed: world.rules.renewed(claimed, self.process.name),
        )
        self.sessions = SimulatedSessions(
            world.loop, self.wire, world.database, worker_id=self.id, lease=plan.lease, on_open=self._open
        )
        self.crew = Crew(
            store,
            self.sessions,
            HANDLERS,
            Limits(timeout=30.0, max_retry_count=3, retry_delay=0.3, cancel_grace=plan.cancel_grace),
            Observers([world.rules] if plan.observed else []),
            engine=ENGINE,
            parallel_count=plan.parallel_count,
            poll_interval=plan.poll_interval,
            prefetch=plan.prefetch,
            listen=self.wire if plan.listens else False,  # type: ignore[arg-type]
            gate=asyncio.Semaphore(1),
        )
        self.crew._watchdog = SimpleNamespace(start=_nothing, stop=_nothing)  # type: ignore[assignment] # it is a thread
        if self.drains:
            with contextlib.suppress(Exception):  # a database error ends a drain
                await self.crew.drain()
            self.stop()
        else:
            self.crew.begin()

    def _open(self, claimed: Claimed, token: AbortToken) -> RunRecord:
        if self._world.loop.time() < self.factory_fails_until:
            raise RuntimeError("the session factory fails")
        record = RunRecord(claimed, token, self.process, self.id, self._world.stage)
        self._world.rules.opened(record)
        return record

    # --- stop ---------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop it, and see to it that it has stopped in time."""
        if self._stopping_at is None and self.process.alive and self.crew is not None:
            self._stopping_at = self._world.loop.time()
            self.process.spawn(self._stop(), f"{self.process.name} stops")
            self._expect_end(self.plan.grace + self.plan.cancel_grace + MOMENT)

    async def _stop(self) -> None:
        assert self.crew is not None
        self._world.note(self.process.name, "stops")
        self._world.rules.closed.add(self.id)
        self.crew.close()
        await asyncio.create_task(self.crew.end(self.plan.grace), name="stop")
        self._stopped = True
        self._world.note(self.process.name, "has stopped")

    @property
    def _stood_still(self) -> float:
        return self.process.stood_still + self._world.loop.blocked

    def _expect_end(self, seconds: float) -> None:
        pause = max(self.process.thaws_at - self._world.loop.time(), 0.0) + seconds
        self._world.loop.call_later(pause, self._check_end, self._stood_still, context=outside())

    def _check_end(self, stood_still: float) -> None:
        if self.is_over:
            return
        if self._stood_still > stood_still or self.process.frozen:
            self._expect_end(self.plan.grace + self.plan.cancel_grace + MOMENT)
        else:
            self._world.rules.breach(f"{self.process.name} was to stop at {self._stopping_at:.3f} s and has not")


def _nothing() -> None:
    pass
