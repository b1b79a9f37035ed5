"""The queue against a model of it (`model.py`): whatever is done in whatever order, by several workers, with stale
claims and a clock that goes forth and back, afterwards the tables hold what a few rules on plain values say.

`HYPOTHESIS_PROFILE=long` lives seventy-five times as many histories, longer ones, and others each time.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Uuid, bindparam, delete, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    CronJob,
    Event,
    JobConflict,
    JobRow,
    JobState,
    LeaseLost,
    NewJob,
    add_jobs,
    cancel_job,
    job_queue_cleanup,
    list_jobs,
    queue_insights,
    register_cron_jobs,
    retry_job,
)
from queue_kit._dialect.plans import any_row, row_pointer
from queue_kit._endings import Settlement
from queue_kit._gate import gate_for
from queue_kit._lazy_session import LazySession
from queue_kit._sessions import Sessions
from queue_kit._statements import changing, claiming, recurring, settling
from queue_kit._statements.vocabulary import CRON, JOB
from queue_kit._store import Store
from queue_kit._transactions import Transactions
from queue_kit.event import AbortToken
from queue_kit.job import Claimed, Outcome, Verdict
from queue_kit.models import CRON_ENTRIES, JOBS
from tests.conftest import Server
from tests.database.clock import WAYS, reach
from tests.database.model import CANCELLED, FAILED, PERIODS, READY, SCHEDULED, Fence, Job, Queue, Worker
from tests.database.movable_clock import START, MovableClock, database_with_clock

T = TypeVar("T")

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"

PLAIN, RECURRING = ("a", "b"), ("c", "d")
LEASE = 30.0
WORKERS = (
    Worker(UUID(int=1), frozenset("abcd"), timedelta(seconds=LEASE)),
    Worker(UUID(int=2), frozenset("ac"), timedelta(seconds=LEASE / 3)),
    Worker(UUID(int=3), frozenset("abcd"), timedelta(seconds=LEASE), deletes=True),
)


# --- the database -----------------------------------------------------------------------------------------------------


class Hands:
    """What one worker works with: its statements, and the sessions of its handlers."""

    def __init__(self, engine: AsyncEngine, worker: Worker) -> None:
        gate, _ = gate_for(engine.sync_engine, 1)
        lease = worker.lease.total_seconds()
        self.store = Store(
            Transactions(engine, gate=gate, lease=lease),
            worker_id=worker.id,
            names=worker.names,
            lease=lease,
            delete_completed=worker.deletes,
            delete_failed=worker.deletes,
        )
        self._sessions = Sessions(
            lambda: LazySession(engine),
            worker_id=worker.id,
            lease=lease,
            isolation=None,
            gate=gate,
            embedded=self.store.embedded,
        )

    async def run(self, claimed: Claimed, new: list[NewJob[Any]], end: str) -> list[int | None] | None:
        """Add jobs in a handler's session that ends like this; `None` when its commit was refused."""
        session = self._sessions.open(claimed, AbortToken())
        try:
            ids = await add_jobs(session.session, new)
            if end == "completed":
                await session.commit(lambda within: session.require(self.store.complete_in(within, claimed)))
            elif end == "checkpoint":
                await session.session.commit()
        except LeaseLost:
            return None
        else:
            return ids
        finally:
            await session.rollback_and_close()

    async def close(self) -> None:
        self._sessions.close()
        await self.store.dispose()


class Real(NamedTuple):
    """A database, the loop it is reached in, and what was seen to happen in any history."""

    runner: asyncio.Runner
    engine: AsyncEngine
    clock: MovableClock
    hands: dict[Worker, Hands]
    seen: Counter[str]

    async def clear(self) -> None:
        """As if freshly migrated, at the beginning of time."""
        async with self.engine.begin() as connection:
            await connection.execute(text("DELETE FROM queue_kit_cron"))
            if self.engine.dialect.name == "postgresql":
                await connection.execute(text("TRUNCATE queue_kit_job RESTART IDENTITY"))
            else:
                await connection.execute(text("DELETE FROM queue_kit_job"))
                await connection.execute(text("DELETE FROM sqlite_sequence"))
        await self.clock.move(START)

    async def tables(self) -> tuple[dict[int, dict[str, Any]], dict[str, dict[str, Any]]]:
        """All jobs by id and all cron definitions by name."""
        async with self.engine.connect() as connection:
            jobs = (await connection.execute(select(JOBS).order_by(JOB.id))).mappings().all()
            entries = (await connection.execute(select(CRON_ENTRIES))).mappings().all()
        return {job["id"]: dict(job) for job in jobs}, {entry["name"]: dict(entry) for entry in entries}


@contextlib.asynccontextmanager
async def _opened(runner: asyncio.Runner, database: Server | Path) -> AsyncIterator[Real]:
    async with database_with_clock(database) as (engine, clock), contextlib.AsyncExitStack() as stack:
        hands = {worker: Hands(engine, worker) for worker in WORKERS}
        for each in hands.values():
            stack.push_async_callback(each.close)
        yield Real(runner, engine, clock, hands, Counter())


@pytest.fixture
def real(database: Server | Path) -> Iterator[Real]:
    """A database with a movable clock and three workers; all histories of a test are lived in it, one by one."""
    with asyncio.Runner() as runner:
        opened = _opened(runner, database)
        yield runner.run(opened.__aenter__())
        runner.run(opened.__aexit__(None, None, None))


# --- what is drawn ----------------------------------------------------------------------------------------------------

new_jobs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(PLAIN),
        "priority": st.sampled_from([5, 4, 9]),
        "unique_key": st.sampled_from([None, None, None, "k", "l"]),
        "due": st.sampled_from([("delay", None), ("at", -60.0), ("at", 0.0), ("delay", 1.0), ("at", 45.0)]),
    },
    optional={
        "data": st.integers(0, 2),
        "max_retry_count": st.integers(1, 2),
        "handler_timeout": st.sampled_from([0.0, 5.0, float("inf")]),
    },
)
cron_jobs = st.builds(
    CronJob,
    st.sampled_from(RECURRING),
    st.sampled_from(list(PERIODS)),
    priority=st.sampled_from([4, 6]),
    data=st.sampled_from([None, 1]),
    handler_timeout=st.sampled_from([None, 5.0]),
)
registrations = st.sampled_from([1, 1, 2, 2, 0]).flatmap(
    lambda count: st.lists(cron_jobs, min_size=count, max_size=count, unique_by=lambda job: job.name)
)
errors = st.sampled_from([{"reason": "x"}, {"reason": "y"}])
delays = st.sampled_from([0.0, 1.0, 45.0])
outcomes = st.one_of(
    st.just(Outcome(Verdict.completed)),
    st.builds(Outcome, st.sampled_from([Verdict.failed, Verdict.failed, Verdict.cancelled]), error=errors),
    st.builds(Outcome, st.just(Verdict.retried), delays, errors),
    st.builds(Outcome, st.just(Verdict.snoozed), delays),
    st.builds(Outcome, st.just(Verdict.released), delays, st.none() | errors),
)
workers = st.sampled_from([WORKERS[0], *WORKERS])
places = st.sampled_from([0, 0, 1, 1, 2, 3, 5])
"""In a list, counted from its end."""
moves = st.sampled_from([LEASE + 0.001, 60.0, 1.0, LEASE / 3, LEASE, 3_600.0, 3 * 86_400.0, -0.001, -1.0, -LEASE])
"""Of the clock, in seconds. At its very end a lease still holds."""
days = st.sampled_from([0, 0, 1, 3])
A_BIT = timedelta(seconds=0.5) / timedelta(days=1)
"""In days. SQLite computes ages a little less exactly than it stores times, so no job is exactly as old as a limit."""

_ARGUMENTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {}
_TURNS: list[str] = []


def step(weight: int = 1, **arguments: st.SearchStrategy[Any]) -> Callable[[T], T]:
    """Something that can happen, and how often it does beside the others.

    Were these rules of their own, half of them would be switched off in each history, and hardly one would lead from an
    enqueue through a claim to an ending.
    """

    def note(function: Any) -> Any:
        _ARGUMENTS[function.__name__] = st.fixed_dictionaries(arguments)
        _TURNS.extend([function.__name__] * weight)
        return function

    return note


# --- the machine ------------------------------------------------------------------------------------------------------


class _RolledBack(Exception):
    pass


class History(RuleBasedStateMachine):
    """One history of a queue, lived by the database and by the model alike."""

    def __init__(self, real: Real) -> None:
        super().__init__()
        self.real = real
        self.model = Queue(START)
        self.runs: dict[Fence, Claimed] = {}
        self.last_id = 0
        self._do(real.clear())

    # --- adding

    @step(weight=4, drawn=st.lists(new_jobs, min_size=1, max_size=3), way=st.sampled_from([*WAYS, "rolled back"]))
    def add(self, drawn: list[dict[str, Any]], way: str) -> None:
        new = [self._new(each) for each in drawn]

        async def add() -> list[int | None]:
            async with reach(self.real.engine, "session" if way == "rolled back" else way) as db:
                ids = await add_jobs(db, new)
                if way == "rolled back":
                    raise _RolledBack
                return ids

        try:
            ids = self._do(add())
        except _RolledBack:
            self._saw("jobs rolled back")
        else:
            self._added([self.model.add(each) for each in new], ids)

    @step(drawn=new_jobs, orm=st.booleans())
    def add_by_hand(self, drawn: dict[str, Any], orm: bool) -> None:
        values = dict(drawn)
        way, seconds = values.pop("due")
        if way == "at":
            values["scheduled_at"] = self.model.now + timedelta(seconds=seconds)

        async def add() -> int:
            async with AsyncSession(self.real.engine) as session, session.begin():
                if orm:
                    row = JobRow(**values)
                    session.add(row)
                    await session.flush()
                    return row.id
                return (await session.execute(insert(JOBS).values(values).returning(JOB.id))).scalar_one()

        try:
            job_id = self._do(add())
        except IntegrityError:
            job_id = None
        self._added([self.model.add(NewJob(**values))], [job_id])

    def _new(self, drawn: dict[str, Any]) -> NewJob[Any]:
        values = dict(drawn)
        way, seconds = values.pop("due")
        if way == "delay":
            return NewJob(**values, delay=seconds)
        return NewJob(**values, scheduled_at=self.model.now + timedelta(seconds=seconds))

    def _added(self, jobs: list[Job | None], ids: list[int | None]) -> None:
        """The database stored the jobs that the model stored, those without a key in the order given."""
        assert [job is None for job in jobs] == [job_id is None for job_id in ids]
        self._saw("a key refused", None in ids)
        stored = [(job, job_id) for job, job_id in zip(jobs, ids, strict=True) if job and job_id]
        in_order = [job_id for job, job_id in stored if job.unique_key is None]
        assert in_order == sorted(in_order)
        assert all(job_id > self.last_id for _, job_id in stored)
        for job, job_id in stored:
            job.id = job_id
        self.last_id = max(self.last_id, *(job_id for _, job_id in stored), 0)

    # --- claiming

    @step(weight=5, worker=workers, wanted=st.integers(1, 3))
    def claim(self, worker: Worker, wanted: int) -> None:
        self.sweep(worker)
        self.claim_choosily(worker, wanted)

    @step(
        weight=2,
        worker=workers,
        wanted=st.integers(0, 2),
        ahead=st.integers(0, 2),
        but_held=st.booleans(),
        suspicions=st.sampled_from([range(100), range(1), range(1, 2), range(2, 100)]),
    )
    def claim_choosily(
        self, worker: Worker, wanted: int, ahead: int = 0, but_held: bool = False, suspicions: range = range(100)
    ) -> None:
        held = {fence.job_id for fence in self.runs if fence.worker is worker and but_held}
        found = self._do(
            self.real.hands[worker].store.claim(
                wanted,
                ahead=ahead,
                bytes_ahead=1_000_000,
                held=held,
                suspects_from=suspicions.start,
                suspects_below=suspicions.stop,
            )
        )
        jobs = self.model.claim(worker, wanted, ahead=ahead, held=held, suspicions=suspicions)
        assert [claimed.job.id for claimed in found] == [job.id for job in jobs]
        for claimed, job in zip(found, jobs, strict=True):
            assert (claimed.claim_no, claimed.lost, claimed.due) == (job.claim_no, job.lost, job.scheduled_at)
            assert (claimed.cancel_requested, claimed.unique_key) == (job.cancel_requested, job.unique_key)
            assert (claimed.job.retry_count, claimed.cron_name) == (job.retry_count, job.cron_name)
            self.runs[Fence(job.id, worker, job.claim_no)] = claimed
            self._saw("a lapsed lease", job.lost > 0)

    @step(weight=2, at=st.lists(places, min_size=1, max_size=3))
    def renew(self, at: list[int]) -> None:
        fences = self._fences(at)
        if fences:
            renewal = self._do(self.real.hands[fences[0].worker].store.renew([self.runs[fence] for fence in fences]))
            assert (renewal.ours, renewal.locked) == (self.model.renew(fences), frozenset())
            self._saw("a lease renewed", bool(renewal.ours))
            self._saw("a renewal refused", len(renewal.ours) < len(fences))

    def _fences(self, at: list[int]) -> list[Fence]:
        """Runs of one worker, each of another job. Some are over, and their jobs perhaps with somebody else."""
        runs = sorted(self.runs, key=lambda fence: self.model.held(fence) is not None)
        picked = [runs[-1 - place % len(runs)] for place in at if runs]
        own = [fence for fence in picked if fence.worker is picked[0].worker]
        return list({fence.job_id: fence for fence in own}.values())

    # --- settling

    @step(weight=4, worker=workers, wanted=st.integers(1, 3), ends=st.lists(outcomes, min_size=3, max_size=3))
    def claim_and_settle(self, worker: Worker, wanted: int, ends: list[Outcome]) -> None:
        before = len(self.runs)
        self.claim(worker, wanted)
        self._settle(list(self.runs)[before:], ends)

    @step(weight=5, at=st.lists(places, min_size=1, max_size=3), ends=st.lists(outcomes, min_size=3, max_size=3))
    def settle(self, at: list[int], ends: list[Outcome]) -> None:
        self._settle(self._fences(at), ends)

    def _settle(self, fences: list[Fence], ends: list[Outcome]) -> None:
        endings = list(zip(fences, ends, strict=False))
        if not endings:
            return
        store = self.real.hands[endings[0][0].worker].store
        settled = self._do(store.settle([(self.runs[fence], outcome) for fence, outcome in endings]))
        for settlement, (fence, outcome) in zip(settled, endings, strict=True):
            held = self.model.held(fence)
            self._saw(outcome.verdict if held else "an ending refused")
            self._saw("an occurrence ended", held is not None and held.cron_name in self.model.entries)
            stands = self.model.settle(fence, outcome)
            assert settlement is (Settlement.done if stands else Settlement.lost)

    @step(
        weight=4,
        at=places,
        drawn=st.lists(new_jobs, min_size=1, max_size=2),
        again=st.booleans(),
        end=st.sampled_from(["completed", "checkpoint", "checkpoint", "rolled back"]),
    )
    def run(self, at: int, drawn: list[dict[str, Any]], again: bool, end: str) -> None:
        for fence in self._fences([at]):
            new = [self._new(each) for each in drawn]
            if again:  # the job adds itself
                new[0] = NewJob("a", unique_key=self.runs[fence].unique_key)
            ids = self._do(self.real.hands[fence.worker].run(self.runs[fence], new, end))
            if end == "rolled back":
                continue
            job = self.model.held(fence)
            assert (ids is None) == (job is None)
            self._saw(f"a session's {end}" if job else "a commit refused")
            if ids is not None and job is not None:
                self._saw("a key handed over", self.model.hand_over(job, new))
                self._added([self.model.add(each) for each in new], ids)
                if end == "completed":
                    self.model.settle(fence, Outcome(Verdict.completed))
                else:
                    self.model.renew([fence])

    # --- operating

    @step(weight=2, at=places)
    def cancel(self, at: int) -> None:
        for job in self._jobs(at, [job for job in self.model.jobs if job.is_live]):
            self._saw(f"cancelled while {self.model.state(job)}")
            assert self._do(cancel_job(self.real.engine, job.id)) == self.model.cancel(job)

    @step(weight=3, at=places)
    def retry(self, at: int) -> None:
        for job in self._jobs(at, [job for job in self.model.jobs if job.status in (FAILED, CANCELLED)]):
            holder = self.model.holder(job.unique_key) if job.status in (FAILED, CANCELLED) else None
            if self.model.retry(job):
                self._do(retry_job(self.real.engine, job.id))
                self._saw("a retry")
            else:
                with pytest.raises(JobConflict) as conflict:
                    self._do(retry_job(self.real.engine, job.id))
                assert conflict.value.holder_id == (holder and holder.id)
                self._saw("a retry refused")

    def _jobs(self, at: int, preferred: list[Job]) -> list[Job]:
        """One job, if there is one: of the preferred ones if there are any, and then rather one that runs."""
        jobs = sorted(preferred or self.model.jobs, key=self.model.is_leased)
        return [jobs[-1 - at % len(jobs)]] if jobs else []

    @step(age=days, failed_age=st.none() | days)
    def prune(self, age: int, failed_age: int | None) -> None:
        limits = age + A_BIT, (age if failed_age is None else failed_age) + A_BIT
        handler = job_queue_cleanup(limits[0], failed_history_in_days=None if failed_age is None else limits[1])

        async def cleanup() -> None:
            async with AsyncSession(self.real.engine) as session:
                await handler(Event(), session, None)
                await session.commit()

        self._do(cleanup())
        self._saw("a job pruned", self.model.prune(*(timedelta(days=limit) for limit in limits)) > 0)

    # --- cron, sweep, time

    @step(weight=2, entries=registrations, way=st.sampled_from(WAYS))
    def register(self, entries: list[CronJob], way: str) -> None:
        async def register() -> None:
            async with reach(self.real.engine, way) as db:
                await register_cron_jobs(db, entries)

        self._do(register())
        self.model.register(entries)

    @step(worker=workers)
    def sweep(self, worker: Worker) -> None:
        store = self.real.hands[worker].store
        promoted, mended = self._do(store.promote()), self._do(store.mend_cron())
        assert (promoted, mended) == (self.model.promote(), self.model.mend())
        self._saw("a promotion", promoted > 0)
        self._saw("a chain mended", mended > 0)

    @step(weight=5, seconds=moves)
    def move_the_clock(self, seconds: float) -> None:
        self.model.now += timedelta(seconds=seconds)
        self._do(self.real.clock.move(self.model.now))

    # --- looking

    @step(worker=workers, state=st.sampled_from(JobState))
    def look(self, worker: Worker, state: JobState) -> None:
        model, look = self.model, self._do(self.real.hands[worker].store.look())
        due = min((job.scheduled_at for job in model.jobs if job.status == SCHEDULED), default=None)
        assert look.due_in == (due and pytest.approx((due - model.now).total_seconds(), abs=0.01))
        assert look.claimable == bool(model.claimable(worker))
        assert look.cron_missing == any(not model.occurrence(name) for name in model.entries)

        listed = [row.id for row in self._do(list_jobs(self.real.engine, state=state))]
        assert listed == sorted((job.id for job in model.jobs if model.state(job) == state), reverse=True)

        counts, live = self._do(queue_insights(self.real.engine)), [job for job in model.jobs if job.is_live]
        assert counts.pending == sum(map(model.is_pending, live))
        assert counts.running == sum(map(model.is_leased, live))
        assert counts.scheduled == len(live) - counts.pending - counts.running
        assert counts.failed == sum(job.status == FAILED for job in model.jobs)

    # --- rules

    @initialize(drawn=st.lists(new_jobs, min_size=2, max_size=4), entries=registrations)
    def begin(self, drawn: list[dict[str, Any]], entries: list[CronJob]) -> None:
        self.add(drawn, "engine")
        self.register(entries, "engine")

    @rule(turn=st.sampled_from(_TURNS).flatmap(lambda name: st.tuples(st.just(name), _ARGUMENTS[name])))
    def take(self, turn: tuple[str, dict[str, Any]]) -> None:
        name, arguments = turn
        getattr(self, name)(**arguments)

    @invariant()
    def the_tables_are_as_the_model_says(self) -> None:
        jobs, entries = self._do(self.real.tables())
        for job_id in sorted(jobs.keys() - {job.id for job in self.model.jobs}):
            self._name_occurrence(job_id, jobs[job_id]["cron_name"])
        assert jobs == {job.id: vars(job) for job in self.model.jobs}
        assert entries == {name: vars(entry) for name, entry in self.model.entries.items()}

    def _name_occurrence(self, job_id: int, cron_name: str | None) -> None:
        """An occurrence just stored gets its id, which nobody returned."""
        for job in self.model.jobs:
            if not job.id and job.cron_name == cron_name and job_id > self.last_id:
                job.id = self.last_id = job_id

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.real.runner.run(work)

    def _saw(self, what: str, happened: bool = True) -> None:
        self.real.seen[what] += happened


def live(real: Real, *, histories: int, steps: int = 40, **options: Any) -> None:
    """Live many histories; raises for the first one in which database and model differ."""
    usual = {"derandomize": not LONG, "database": None, "suppress_health_check": list(HealthCheck)}
    chosen = settings(max_examples=histories, stateful_step_count=steps, **usual, **options)
    run_state_machine_as_test(lambda: History(real), settings=chosen)


EVENTS = {
    *("completed", "failed", "retried", "snoozed", "released", "an occurrence ended"),
    *("a key refused", "jobs rolled back", "a promotion", "a lapsed lease", "a lease renewed", "a renewal refused"),
    *("an ending refused", "a commit refused", "a session's completed", "a session's checkpoint"),
    *("cancelled while ready", "cancelled while scheduled", "cancelled while running", "a retry", "a retry refused"),
    "a job pruned",
}
"""What happens in a few dozen histories, unless the machine does not live them as it should."""
RARE = {"a key handed over", "a chain mended"}
"""What happens in a few hundred."""


def test_c9_whatever_is_done_the_tables_hold_what_the_model_says(real):
    live(real, histories=3000 if LONG else 40, steps=100 if LONG else 40)
    wanted = EVENTS | RARE if LONG else EVENTS
    assert not wanted - {event for event, times in real.seen.items() if times}


# --- what the machine finds -------------------------------------------------------------------------------------------

Change = Callable[[pytest.MonkeyPatch], None]


def writing(file: ModuleType, name: str, **values: Any) -> Change:
    """A statement that writes other values."""
    statement: Any = getattr(file, name)()
    return replacing(file, name, lambda: statement.values(**values))


def replacing(file: ModuleType, name: str, made: Callable[..., Any]) -> Change:
    """A statement, or a part of several, that is another one."""
    return lambda patch: patch.setattr(file, name, made)


def _ours_by_worker(batch: Any) -> Any:
    holds = JOB.worker_id == bindparam("worker", type_=Uuid())
    return any_row(select(row_pointer()).where(JOB.id == batch.id, holds, JOB.status == READY))


def _claimable_by_id(found: Any, *conditions: Any, claimable: Any = claiming._claimable) -> Any:
    return claimable(found, *conditions).order_by(None).order_by(JOB.id)


MUTANTS = {
    "fences without the number of the claim": replacing(settling, "_ours", _ours_by_worker),
    "claims in the order of ids": replacing(claiming, "_claimable", _claimable_by_id),
    "claims that do not count a lapse": writing(claiming, "claim", lost=JOB.lost),
    "claims that keep the number": writing(claiming, "claim", claim_no=JOB.claim_no),
    "renewals that extend nothing": writing(settling, "renew", lease_until=JOB.lease_until),
    "releases that keep the worker": writing(settling, "put_back", worker_id=JOB.worker_id),
    "retries that keep the count": writing(changing, "retry", retry_count=JOB.retry_count),
    "cancellations that end a run": writing(changing, "cancel", status=CANCELLED),
    "ticks that are not noted": writing(recurring, "advance_cron", next_at=CRON.next_at),
    "prunes that ask for no age": replacing(changing, "prune", lambda: delete(JOBS).where(JOB.status > READY)),
}


def _forget_statements() -> None:
    for file in (changing, claiming, recurring, settling):
        for each in vars(file).values():
            if hasattr(each, "cache_clear"):
                each.cache_clear()


@pytest.fixture
def mutant(request: pytest.FixtureRequest) -> Iterator[None]:
    """Statements with one of `MUTANTS` among them."""
    with pytest.MonkeyPatch.context() as patch:
        _forget_statements()
        MUTANTS[request.param](patch)
        yield
    _forget_statements()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("mutant", MUTANTS, indirect=True)
def test_the_machine_finds(mutant, real):
    with pytest.raises(AssertionError):
        live(real, histories=500, phases=[Phase.generate])
