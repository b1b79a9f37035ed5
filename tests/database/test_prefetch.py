"""What a worker claims ahead of its pullers: how much, who may have it instead, and what must not wait behind it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import Handlers, JobRow, JobState, NewJob, QueueWorker, add_job, add_jobs, cancel_job, retry_job
from queue_kit._claims import BYTES_AHEAD
from queue_kit._store import Store
from queue_kit.job import Claimed
from queue_kit.models import COMPLETED
from tests.conftest import engine_for
from tests.database.clock import database_now, rows
from tests.database.running import Gate, claims, lapse, locked, statements
from tests.support import Recorder, change, count_jobs, row_of, until

NEVER = 3_600.0
"""A poll that no test waits for."""


class Hold(Gate):
    """A handler that is first quick and then waits: jobs of the name `quick` end at once, those of `hold` at the gate.

    With quick jobs before it, the worker holds jobs ahead while the one that waits is run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.jobs = Handlers()
        self.jobs.handler("hold")(self)
        self.quick: list[int] = []

        @self.jobs.handler("quick")
        async def quick(event, session, job):
            self.quick.append(job.id)


@pytest.fixture
def hold() -> Hold:
    return Hold()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something is held ahead, and stays so, however long the test takes."""
    monkeypatch.setattr("queue_kit._pace.HORIZON", 600.0)
    monkeypatch.setattr("queue_kit._claims.STALE", 600.0)


async def fill(engine: AsyncEngine, *ahead: NewJob, warm_up: int = 60) -> list[int]:
    """Quick jobs, then one that waits, then these; returns the ids of these."""
    await add_jobs(engine, [NewJob("quick", priority=0)] * warm_up)
    await add_job(engine, "hold", priority=1)
    return await add_jobs(engine, ahead)


async def held_ahead(engine: AsyncEngine) -> list[JobRow]:
    """The jobs that a worker holds and has not begun, given that what is begun is of the name `hold`."""
    return await rows(engine, JobRow.worker_id.is_not(None), ~JobRow.is_complete, JobRow.name != "hold")


async def some_held(engine: AsyncEngine, hold: Hold) -> list[JobRow]:
    """Wait until the one that waits is begun; the jobs that are then held ahead."""
    await until(lambda: hold.running)

    async def held() -> list[JobRow]:
        found = await held_ahead(engine)
        return [row for row in found if row.id not in hold.quick]

    async def written() -> bool:
        return await count_jobs(engine, JobRow.status == COMPLETED) == len(hold.quick)

    await until(written)
    return await until(held)


async def renewed(engine: AsyncEngine, job_id: int, *, times: int = 2) -> None:
    """Wait until a lease was renewed; after the second time the worker has surely read what the first one said."""
    for _ in range(times):
        before = (await row_of(engine, job_id)).lease_until

        async def later(before=before) -> bool:
            return (await row_of(engine, job_id)).lease_until > before

        await until(later)


# --- order ------------------------------------------------------------------------------------------------------------


async def test_without_prefetch_one_puller_keeps_the_order_strictly(engine):
    ran, better = [], []

    async def work(event, session, job):
        ran.append(job)
        if len(ran) % 5 == 0 and len(better) < 6:
            better.append(await add_job(engine, "work", priority=len(better) % 3))

    worse = await add_jobs(engine, [NewJob("work", priority=3 + number % 3) for number in range(60)])
    await QueueWorker(engine, {"work": work}, prefetch=0).drain()
    assert {job.id for job in ran} == {*worse, *better}
    waiting = {job.id: job for job in ran if job.id in worse}
    for number, job in enumerate(ran):
        if number and number % 5 == 0 and number // 5 <= len(better):
            assert job.id == better[number // 5 - 1]  # added by the run before this one
        else:
            assert job is min(waiting.values(), key=lambda each: (each.priority, each.scheduled_at, each.id))
        waiting.pop(job.id, None)


async def test_without_prefetch_nothing_is_ever_claimed_ahead(engine, hold):
    await fill(engine, *[NewJob("quick", priority=2)] * 20)
    async with QueueWorker(engine, hold.jobs, prefetch=0):
        await until(lambda: hold.running)
        assert await held_ahead(engine) == []
        hold.open.set()
        await until(lambda: len(hold.quick) == 80)


async def test_a_better_job_is_started_before_most_of_the_worse_ones(engine):
    ran = []

    async def work(event, session, job):
        ran.append(job.id)
        await asyncio.sleep(0.001 if len(ran) < 200 else 0.01)  # then the database has time for the better one

    await add_jobs(engine, [NewJob("work", priority=9)] * 2_000)
    async with QueueWorker(engine, {"work": work}):
        await until(lambda: len(ran) >= 200)
        better = await add_job(engine, "work", priority=0)
        await until(lambda: better in ran)
        assert ran.index(better) < 1_200


async def test_a_limit_on_the_window_is_kept(engine, hold, patient):
    await fill(engine, *[NewJob("quick", priority=2)] * 50)
    async with QueueWorker(engine, hold.jobs, prefetch=5):
        held = await some_held(engine, hold)
        assert 1 <= len(held) <= 5
        hold.open.set()
        await until(lambda: len(hold.quick) == 110)


# --- who may have it instead ------------------------------------------------------------------------------------------


async def test_a_job_that_is_cancelled_while_it_is_held_ahead_ends_without_running(engine, hold, patient):
    await fill(engine, *[NewJob("quick", priority=2)] * 20)
    hook = Recorder()
    async with QueueWorker(engine, hold.jobs, lease=3.0, hooks=[hook]):
        chosen = (await some_held(engine, hold))[0].id
        assert await cancel_job(engine, chosen) is JobState.running
        await renewed(engine, chosen)
        hold.open.set()
        await until(lambda: len(hook.settled) == 81)
    assert chosen not in hold.quick
    assert (await row_of(engine, chosen)).state is JobState.cancelled
    assert await count_jobs(engine, JobRow.status == COMPLETED) == 80


async def test_what_is_held_ahead_is_given_back_at_once_by_a_stop_and_nothing_is_counted(engine, hold, patient):
    await fill(engine, *[NewJob("quick", priority=2)] * 20)
    first = QueueWorker(engine, hold.jobs, poll_interval=NEVER)
    await first.start()
    held = [row.id for row in await some_held(engine, hold)]
    done = list(hold.quick)
    stopping = asyncio.create_task(first.stop(grace=60))

    async def given_back() -> bool:
        return await held_ahead(engine) == []

    await until(given_back)
    assert not stopping.done()
    for row in await rows(engine, JobRow.id.in_(held)):
        assert (row.state, row.claim_no, row.lost, row.retry_count, row.errors) == (JobState.ready, 1, 0, 0, None)
    gone_on: list[int] = []

    async def quick(event, session, job):
        gone_on.append(job.id)

    assert (await QueueWorker(engine, {"quick": quick}).drain())["completed"] == 20
    assert set(held) <= set(gone_on)
    hold.open.set()
    await asyncio.wait_for(stopping, 20)
    assert hold.quick == done


async def test_two_workers_with_slow_handlers_hoard_nothing_and_both_are_busy(engine):
    gate, hook = Gate(), Recorder()
    await add_jobs(engine, [NewJob("slow")] * 20)
    options = {"parallel_count": 2, "poll_interval": 0.05, "hooks": [hook]}
    workers = [QueueWorker(engine, {"slow": gate}, **options) for _ in range(2)]
    async with workers[0], workers[1]:
        await until(lambda: len(gate.running) == 4)
        assert await count_jobs(engine, JobRow.worker_id.is_not(None)) == 4
        for worker in workers:
            assert await count_jobs(engine, JobRow.worker_id == worker.id) == 2
        gate.open.set()
        await until(lambda: len(hook.settled) == 20)


async def test_what_a_worker_holds_that_became_slow_goes_to_one_that_is_free(engine, hold):
    await fill(engine, *[NewJob("hold", priority=2)] * 20)
    hook = Recorder()
    async with QueueWorker(engine, hold.jobs, poll_interval=NEVER) as busy:
        await until(lambda: hold.running)
        async with QueueWorker(engine, hold.jobs, parallel_count=20, poll_interval=0.05, hooks=[hook]):
            await until(lambda: len(hold.running) == 21)
            assert await count_jobs(engine, JobRow.worker_id == busy.id, ~JobRow.is_complete) == 1
            hold.open.set()
            await until(lambda: len(hook.settled) == 20)
    assert await count_jobs(engine, JobRow.lost > 0) == 0
    assert await count_jobs(engine, JobRow.retry_count > 0) == 0


async def test_a_job_whose_lease_lapsed_while_it_was_held_ahead_is_not_run_twice_at_once(engine, hold, patient):
    await fill(engine, *[NewJob("quick", priority=2)] * 20)
    hooks = Recorder(), Recorder()
    ran_elsewhere, go_on = [], asyncio.Event()

    async def quick(event, session, job):
        ran_elsewhere.append(job.id)
        if job.id == chosen:
            await go_on.wait()

    async with QueueWorker(engine, hold.jobs, lease=3.0, poll_interval=NEVER, hooks=hooks[:1]):
        held, kept, *_ = await some_held(engine, hold)
        chosen, still_held, lapsed = held.id, kept.id, held.lease_until - timedelta(minutes=10)
        async with QueueWorker(engine, {"quick": quick}, poll_interval=0.02, hooks=hooks[1:]):

            async def taken() -> bool:
                # Again and again, since the first worker renews it; never the lease that the other one has by then.
                await change(engine, chosen, JobRow.claim_no == held.claim_no, lease_until=lapsed)
                return chosen in ran_elsewhere

            await until(taken)
            await renewed(engine, still_held)
            hold.open.set()
            await until(lambda: still_held in hold.quick)
            await until(lambda: any(record.job.id == chosen for record in hooks[0].settled))
            assert chosen not in hold.quick
            go_on.set()
            await until(lambda: any(record.job.id == chosen for record in hooks[1].settled))
    assert verdicts_of(chosen, hooks[0]) == ["lost"]
    assert verdicts_of(chosen, hooks[1]) == ["completed"]
    assert ran_elsewhere.count(chosen) == 1
    row = await row_of(engine, chosen)
    assert (row.state, row.retry_count) == (JobState.completed, 0)


class Meanwhile:
    """Lets a claim take so long that a lease lapses on its way: another worker has the job meanwhile and gives it back,
    so the claim brings it once more. The job that the one puller runs meanwhile waits at the gate.
    """

    def __init__(self, engine: AsyncEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        self._engine = engine
        self.gate = gate
        self._claim = Store.claim
        self.lost = 0
        """How many leases of the job have lapsed by then."""
        self.of_one_that_runs = False
        """Whether it is the job at the gate that comes again, or the last one that is held ahead."""
        self.job_id = 0
        """The job, once it has come again."""
        self._over = False
        monkeypatch.setattr(Store, "claim", lambda store, wanted, **options: self._slow(store, wanted, **options))
        gate.open.set()

    async def _slow(self, store: Store, wanted: int, *, held: Iterable[int], **options: Any) -> list[Claimed]:
        held = [*held]
        ahead = {*held} - {*self.gate.ran}
        if self._over or len(ahead) < 3:
            return await self._claim(store, wanted, held=held, **options)
        self._over = True
        self.gate.open.clear()
        (at_the_gate,) = await until(lambda: self.gate.running)
        job_id = at_the_gate if self.of_one_that_runs else max(ahead)
        await lapse(self._engine, job_id)
        await change(self._engine, job_id, worker_id=None, retry_count=1, lost=self.lost)
        as_if_sent_before_that = {"after": None, "running": ()}
        found = await self._claim(store, 1, held=held, **options | as_if_sent_before_that)
        if job_id in [claimed.job.id for claimed in found]:
            self.job_id = job_id
        return found


@pytest.fixture
def meanwhile(engine, monkeypatch) -> Meanwhile:
    return Meanwhile(engine, Gate(), monkeypatch)


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_job_that_comes_again_while_it_is_held_ahead_is_run_once(engine, patient, meanwhile, lost, caplog):
    gate, hook, meanwhile.lost = meanwhile.gate, Recorder(), lost
    await add_jobs(engine, [NewJob("work")] * 200)
    async with QueueWorker(engine, {"work": gate}, hooks=[hook]):
        await until(lambda: meanwhile.job_id)
        gate.open.set()
        await until(lambda: hook.verdicts.count("completed") == 200)
    assert gate.ran.count(meanwhile.job_id) == 1
    assert verdicts_of(meanwhile.job_id, hook) == ["lost", "completed"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_job_that_comes_again_while_it_runs_is_aborted_and_then_run_again(engine, patient, meanwhile):
    gate, hook, meanwhile.of_one_that_runs = meanwhile.gate, Recorder(), True
    await add_jobs(engine, [NewJob("work")] * 200)
    async with QueueWorker(engine, {"work": gate}, hooks=[hook]):
        await until(lambda: "lost" in hook.verdicts)
        assert meanwhile.job_id not in gate.running
        gate.open.set()
        await until(lambda: hook.verdicts.count("completed") == 200)
    assert verdicts_of(meanwhile.job_id, hook) == ["lost", "completed"]


def verdicts_of(job_id: int, hook: Recorder) -> list[str]:
    """How the runs of a job ended."""
    return [record.outcome.verdict for record in hook.settled if record.job.id == job_id]


# --- how much ---------------------------------------------------------------------------------------------------------


async def test_large_payloads_are_held_ahead_by_their_bytes(engine, hold, patient):
    size = 300 * 1_024
    large = [NewJob("quick", {"text": "x" * size}, priority=2) for _ in range(20)]
    await fill(engine, *large, warm_up=300)
    for _ in range(4):
        await add_jobs(engine, large)
    async with QueueWorker(engine, hold.jobs, poll_interval=NEVER):
        held = await some_held(engine, hold)
        assert all(len(row.data["text"]) == size for row in held)
        assert size < len(held) * size <= BYTES_AHEAD
        hold.open.set()
        await until(lambda: len(hold.quick) == 400)


async def test_what_is_run_during_a_claim_that_had_no_room_leaves_no_puller_waiting(engine, hold, patient, monkeypatch):
    claim = Store.claim

    async def slow_when_full(store: Store, wanted: int, **options: Any) -> list[Claimed]:
        found = await claim(store, wanted, **options)
        if not wanted and not found:
            held = {row.id for row in await held_ahead(engine)}
            hold.open.set()
            await until(lambda: held <= {*hold.quick})
        return found

    monkeypatch.setattr(Store, "claim", slow_when_full)
    large = [NewJob("quick", {"text": "x" * 300 * 1_024}, priority=2) for _ in range(20)]
    await fill(engine, *large, warm_up=300)
    async with QueueWorker(engine, hold.jobs, poll_interval=NEVER):
        await until(lambda: len(hold.quick) == 320)
    assert hold.open.is_set()


async def test_a_payload_larger_than_all_that_is_left_ahead_is_run_as_well(engine, hold):
    large = [NewJob("quick", {"text": "x" * 1_000_000}) for _ in range(12)]
    await add_jobs(engine, [NewJob("quick", priority=0)] * 60)
    await add_jobs(engine, large)
    counts = await QueueWorker(engine, hold.jobs).drain()
    assert counts["completed"] == 72


# --- what becomes ready behind the mark -------------------------------------------------------------------------------


async def by_priority(engine: AsyncEngine) -> int:
    return await add_job(engine, "late", priority=0)


async def by_retry(engine: AsyncEngine) -> int:
    (row,) = await rows(engine, JobRow.name == "late")
    await retry_job(engine, row.id)
    return row.id


async def by_hand(engine: AsyncEngine) -> int:
    at = await database_now(engine) - timedelta(days=1)
    return await add_job(engine, "late", priority=5, scheduled_at=at)


async def by_program(engine: AsyncEngine) -> int:
    (row,) = await rows(engine, JobRow.name == "late")
    await change(engine, row.id, status=1, worker_id=None)
    return row.id


BEHIND: dict[str, Callable[[AsyncEngine], Awaitable[int]]] = {
    "of a better priority": by_priority,
    "retried": by_retry,
    "due before the others": by_hand,
    "made ready by another program": by_program,
}


class Backlog:
    """Handlers for many jobs that are quick at first, and for the one that comes late."""

    def __init__(self) -> None:
        self.jobs = Handlers()
        self.ran: list[int] = []
        self.late: list[int] = []

        @self.jobs.handler("many")
        async def many(event, session, job):
            self.ran.append(job.id)
            await asyncio.sleep(0.001 if len(self.ran) < 200 else 0.01)  # then the database has time for the late one

        @self.jobs.handler("late")
        async def late(event, session, job):
            self.late.append(job.id)


@pytest.fixture
def backlog() -> Backlog:
    return Backlog()


@pytest.fixture
async def elsewhere(database_url) -> AsyncIterator[AsyncEngine]:
    """Another program, whose commits this process does not hear of."""
    made = engine_for(database_url)
    yield made
    await made.dispose()


@pytest.mark.parametrize("become_ready", BEHIND.values(), ids=BEHIND.keys())
async def test_what_becomes_ready_behind_the_mark_is_run_in_the_middle_of_the_backlog(
    engine, elsewhere, backlog, become_ready
):
    if become_ready in (by_retry, by_program):
        failed = await add_job(engine, "late", priority=0)
        await change(engine, failed, status=3)
    await add_jobs(engine, [NewJob("many")] * 3_000)
    async with QueueWorker(engine, backlog.jobs, parallel_count=2, poll_interval=NEVER, listen=False):
        await until(lambda: len(backlog.ran) >= 200)
        job_id = await become_ready(elsewhere)
        await until(lambda: backlog.late == [job_id])
        assert len(backlog.ran) < 2_500


async def test_what_is_promoted_behind_the_mark_is_run_in_the_middle_of_the_backlog(engine, backlog):
    await add_jobs(engine, [NewJob("many")] * 3_000)
    async with QueueWorker(engine, backlog.jobs, parallel_count=2):
        await until(lambda: len(backlog.ran) >= 200)
        job_id = await add_job(engine, "late", priority=0, delay=0.05)
        await until(lambda: backlog.late == [job_id])
        assert len(backlog.ran) < 2_500


async def test_a_row_that_was_locked_when_it_was_passed_is_run_in_the_middle_of_the_backlog(pg_engine, backlog):
    job_id = await add_job(pg_engine, "late", priority=0)
    await add_jobs(pg_engine, [NewJob("many")] * 3_000)
    async with contextlib.AsyncExitStack() as lock:
        await lock.enter_async_context(locked(pg_engine, job_id))
        async with QueueWorker(pg_engine, backlog.jobs, parallel_count=2, poll_interval=NEVER):
            await until(lambda: len(backlog.ran) >= 200)
            assert backlog.late == []
            await lock.aclose()
            await until(lambda: backlog.late == [job_id])
            assert len(backlog.ran) < 2_500


async def test_what_became_ready_behind_the_mark_is_run_though_the_backlog_has_ended(
    engine, elsewhere, hold, monkeypatch
):
    """The head is not to be looked at for a while, and nobody will wake the worker then: it looks by itself."""
    monkeypatch.setattr("queue_kit._scan.RESCAN_EVERY", 2.0)
    ran = []

    @hold.jobs.handler("late")
    async def late(event, session, job):
        ran.append(job.id)

    await fill(engine, *[NewJob("quick", priority=2)] * 5)
    async with QueueWorker(engine, hold.jobs, poll_interval=NEVER, listen=False):
        await until(lambda: hold.running)
        job_id = await by_priority(elsewhere)
        hold.open.set()
        await until(lambda: ran == [job_id])
    assert len(hold.quick) == 65


async def test_a_drain_leaves_nothing_behind_its_mark(engine):
    ran, added = [], []
    jobs = Handlers()

    @jobs.handler("work", retry_delay=0, max_retry_count=3)
    async def work(event, session, job):
        ran.append(job.id)
        if job.data.get("adds") and job.retry_count == 0:
            at = await database_now(engine) - timedelta(days=1)
            added.append(await add_job(engine, "work", priority=0))
            added.append(await add_job(engine, "work", priority=5, scheduled_at=at))
        if job.data.get("fails") and job.retry_count == 0:
            raise ValueError("once")

    mixed = [NewJob("work", {"adds": number % 100 == 50, "fails": number % 100 == 70}) for number in range(600)]
    ids = await add_jobs(engine, mixed)
    counts = await asyncio.wait_for(QueueWorker(engine, jobs, parallel_count=5).drain(), 60)
    assert (counts["completed"], counts["retried"]) == (612, 6)
    assert set(ran) == {*ids, *added}
    assert await count_jobs(engine, JobRow.status == COMPLETED) == 612


async def test_a_drain_runs_what_was_locked_for_a_while(pg_engine):
    freed, ran = asyncio.Event(), []

    async def work(event, session, job):
        ran.append(job.id)
        if len(ran) == 300:
            freed.set()
            await released.wait()

    released = asyncio.Event()
    first, *_ = await add_jobs(pg_engine, [NewJob("work")] * 600)
    async with locked(pg_engine, first):
        draining = asyncio.create_task(QueueWorker(pg_engine, {"work": work}).drain())
        await until(freed.is_set)
        assert first not in ran
    released.set()
    counts = await asyncio.wait_for(draining, 60)
    assert counts["completed"] == 600
    assert first in ran


# --- what it saves ----------------------------------------------------------------------------------------------------


async def test_one_puller_needs_far_fewer_statements_than_jobs(engine, hold):
    await add_jobs(engine, [NewJob("quick")] * 1_000)
    with statements() as sent:
        counts = await QueueWorker(engine, hold.jobs).drain()
    assert counts["completed"] == 1_000
    updates = sum("UPDATE queue_kit_job" in each for each in sent)
    # Usually some 100, of which 20 claim; 386 were seen on a busy machine. One by one it would be 2,000.
    assert 2 <= len(claims(sent)) < 200
    assert updates < 1_000


async def test_without_prefetch_one_puller_claims_one_by_one(engine, hold):
    await add_jobs(engine, [NewJob("quick")] * 50)
    with statements() as sent:
        await QueueWorker(engine, hold.jobs, prefetch=0).drain()
    assert 50 <= len(claims(sent)) <= 55
