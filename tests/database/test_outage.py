"""A database that goes away and comes back: no job and no ending is lost, nothing is done twice, and a worker neither
ends nor floods the log or the server. On PostgreSQL, which can go away alone; SQLite can only be busy."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import JobRow, JobState, LeaseLost, NewJob, QueueWorker, add_job, add_jobs, cancel_job, sqlite_engine
from tests.database.running import LISTENS, Gate, nothing, raw
from tests.proxy import Proxy, through_proxy
from tests.support import (
    ADD_EFFECT,
    DOWN,
    UP,
    Recorder,
    changes,
    count_jobs,
    effects,
    make_effects,
    move,
    row_of,
    until,
)

QUICK = {"poll_interval": 0.05, "retry_delay": 0.05}


@pytest.fixture
async def away(pg_engine: AsyncEngine) -> AsyncIterator[tuple[Proxy, AsyncEngine]]:
    """A proxy and an engine through it; `pg_engine` sees the database also when that one does not."""
    async with through_proxy(pg_engine) as pair:
        yield pair


async def note_effect(event, session, job):
    await session.execute(ADD_EFFECT, {"job_id": job.id})


# --- away and back ----------------------------------------------------------------------------------------------------


async def test_an_idle_worker_waits_for_its_database_and_goes_on(away, pg_engine, caplog):
    proxy, engine = away
    await make_effects(pg_engine)
    hook = Recorder()

    async def outage() -> None:
        proxy.down()
        await until(lambda: not worker.healthy)
        await add_job(pg_engine, "work", max_retry_count=1)
        before = proxy.attempts
        await until(lambda: proxy.attempts > before + 1)  # who probes and who listens try again
        proxy.up()
        await until(lambda: worker.healthy)

    async with QueueWorker(engine, {"work": note_effect}, hooks=[hook], **QUICK) as worker:
        await add_job(pg_engine, "work")
        await until(lambda: hook.verdicts.count("completed") == 1)
        await outage()
        await until(lambda: hook.verdicts.count("completed") == 2)
        await outage()
        await until(lambda: hook.verdicts.count("completed") == 3)
    assert hook.states == ["started", *["database_down", "database_up"] * 2, "stopping", "stopped"]
    assert changes(caplog) == [DOWN, UP] * 2
    assert len(await effects(pg_engine)) == 3
    assert await count_jobs(pg_engine, JobRow.retry_count == 0, JobRow.is_complete) == 3


async def settled(hook: Recorder, count: int) -> None:
    await until(lambda: len(hook.settled) >= count)


async def test_endings_are_kept_while_the_database_is_away_and_written_when_it_is_back(away, pg_engine, caplog):
    proxy, engine = away
    gate, hook = Gate(), Recorder()
    ids = await add_jobs(pg_engine, [NewJob("long", max_retry_count=1)] * 5)
    failing = set(ids[3:])

    async def long(event, session, job):
        await gate(event, session, job)
        if job.id in failing:
            raise ValueError("on its own account")

    async with QueueWorker(engine, {"long": long}, parallel_count=5, hooks=[hook], **QUICK) as worker:
        await until(lambda: len(gate.running) == 5)
        proxy.down()
        await until(lambda: not worker.healthy)
        gate.open.set()
        await until(lambda: not gate.running)
        assert hook.settled == []
        assert await count_jobs(pg_engine, JobRow.is_complete) == 0
        proxy.up()
        await settled(hook, 5)
    assert sorted(gate.ran) == ids
    assert sorted(hook.verdicts) == ["completed"] * 3 + ["failed"] * 2
    rows = [await row_of(pg_engine, job_id) for job_id in ids]
    assert [row.state for row in rows] == [JobState.completed] * 3 + [JobState.failed] * 2
    assert [(row.claim_no, row.lost) for row in rows] == [(1, 0)] * 5
    assert rows[3].errors[0]["message"] == "on its own account"
    assert changes(caplog) == [DOWN, UP]


async def test_a_run_whose_lease_lapses_in_an_outage_is_released_with_nothing_counted(away, pg_engine, caplog):
    proxy, engine = away
    reasons, begun = [], []

    async def long(event, session, job):
        begun.append(job.id)
        if len(begun) == 1:
            try:
                await asyncio.sleep(600)
            finally:
                reasons.append(event.signal.reason)

    job_id = await add_job(pg_engine, "long", max_retry_count=1)
    hook = Recorder()
    async with QueueWorker(engine, {"long": long}, lease=2.0, hooks=[hook], **QUICK):
        await until(lambda: begun)
        proxy.down()
        await until(lambda: reasons)
        assert isinstance(reasons[0], LeaseLost)
        proxy.up()
        await settled(hook, 2)
    assert hook.verdicts == ["released", "completed"]
    row = await row_of(pg_engine, job_id)
    assert (row.state, row.retry_count, row.lost, row.errors) == (JobState.completed, 0, 0, None)
    (line,) = [record for record in caplog.records if getattr(record, "job_outcome", None) == "released"]
    assert line.levelname == "WARNING"
    assert line.message.endswith(f" s: the lease of job {job_id} was not renewed in time")


async def test_a_job_that_is_cancelled_once_its_lease_lapsed_is_lost_for_the_worker_that_had_it(away, pg_engine):
    proxy, engine = away
    gate, hook = Gate(), Recorder()
    job_id = await add_job(pg_engine, "long", max_retry_count=1)
    async with QueueWorker(engine, {"long": gate}, lease=600.0, hooks=[hook], **QUICK) as worker:
        await until(lambda: gate.running)
        proxy.down()
        await until(lambda: not worker.healthy)
        gate.open.set()
        await until(lambda: not gate.running)
        await move(pg_engine, job_id, lease_until=-1_200)
        await cancel_job(pg_engine, job_id)
        proxy.up()
        await settled(hook, 1)
    assert hook.verdicts == ["lost"]
    assert (await row_of(pg_engine, job_id)).state is JobState.cancelled


@pytest.mark.parametrize("in_a_group", [False, True])
async def test_a_handler_that_loses_its_connection_runs_again_and_no_try_is_counted(away, pg_engine, in_a_group):
    proxy, engine = away
    await make_effects(pg_engine)
    begun = []

    async def write(event, session, job):
        begun.append(job.id)
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        if len(begun) == 1:
            proxy.cut()
            if in_a_group:
                async with asyncio.TaskGroup() as group:
                    group.create_task(session.execute(text("SELECT 1")))
            await session.execute(text("SELECT 1"))

    job_id = await add_job(pg_engine, "write", max_retry_count=1)
    hook = Recorder()
    async with QueueWorker(engine, {"write": write}, hooks=[hook], **QUICK):
        await settled(hook, 2)
    assert hook.verdicts == ["released", "completed"]
    assert await effects(pg_engine) == [job_id]
    assert (await row_of(pg_engine, job_id)).retry_count == 0


# --- a reply that is lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivered", [True, False])
async def test_n5_a_completion_whose_commit_has_no_reply_is_read_again(away, pg_engine, delivered):
    proxy, engine = away
    await make_effects(pg_engine)
    begun = []

    async def write(event, session, job):
        begun.append(job.id)
        await note_effect(event, session, job)
        if len(begun) == 1:
            proxy.down_at(b"COMMIT", delivered=delivered)

    job_id = await add_job(pg_engine, "write", max_retry_count=1)
    hook = Recorder()
    async with QueueWorker(engine, {"write": write}, hooks=[hook], **QUICK):
        await until(proxy.tripped.is_set)
        assert await effects(pg_engine) == ([job_id] if delivered else [])
        proxy.up()
        await settled(hook, 1 if delivered else 2)
    assert hook.verdicts == (["completed"] if delivered else ["released", "completed"])
    assert len(begun) == len(hook.verdicts)
    assert await effects(pg_engine) == [job_id]
    row = await row_of(pg_engine, job_id)
    assert (row.state, row.retry_count) == (JobState.completed, 0)


async def test_a_stop_while_a_commit_has_no_reply_keeps_no_connection_from_the_next_worker(pg_engine):
    await make_effects(pg_engine)
    first_id = await add_job(pg_engine, "write")
    async with through_proxy(pg_engine, pool_size=3, max_overflow=0) as (proxy, engine):  # handlers have one of these

        async def write(event, session, job):
            await note_effect(event, session, job)
            if job.id == first_id:
                proxy.down_at(b"COMMIT", delivered=True)

        worker = QueueWorker(engine, {"write": write}, handler_timeout=5, grace=0.1, cancel_grace=0.1, **QUICK)
        await worker.start()
        await until(proxy.tripped.is_set)
        await worker.stop()
        proxy.up()
        next_id = await add_job(pg_engine, "write")
        assert (await worker.drain())["completed"] == 1
    assert await effects(pg_engine) == [first_id, next_id]


@pytest.mark.parametrize("delivered", [True, False])
@pytest.mark.parametrize("keep", [True, False])
async def test_n5_a_batch_of_endings_that_has_no_reply_is_written_once(away, pg_engine, delivered, keep):
    proxy, engine = away
    gate, hook = Gate(), Recorder()
    ids = await add_jobs(pg_engine, [NewJob("long")] * 5)
    # Who listens renews at once when it connects, which sends the same as settling.
    options = {"parallel_count": 5, "delete_job_on_completion": not keep, "poll_interval": 0.05, "listen": False}
    async with QueueWorker(engine, {"long": gate}, hooks=[hook], **options):
        await until(lambda: len(gate.running) == 5)
        proxy.down_at(b"[[", delivered=delivered)  # what only settling sends, long before the next renewal
        gate.open.set()
        await until(proxy.tripped.is_set)
        assert await count_jobs(pg_engine, ~JobRow.is_complete) == (0 if delivered else 5)
        proxy.up()
        await settled(hook, 5)
    assert sorted(gate.ran) == ids
    assert await count_jobs(pg_engine) == (5 if keep else 0)
    assert await count_jobs(pg_engine, JobRow.is_complete, JobRow.claim_no == 1) == (5 if keep else 0)
    assert hook.verdicts == ["completed" if keep or not delivered else "lost"] * 5


CLAIMS = b"\x00\x00\x00\x02[]"
"""What of a worker's statements only its claim sends: that it runs nothing now."""


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_claim_that_has_no_reply_is_made_again_and_its_job_runs_once(away, pg_engine, delivered):
    proxy, engine = away
    gate, hook = Gate(), Recorder()
    gate.open.set()
    # Nothing but the poll makes it claim, and only when there is a job: one puller is always idle, and nobody listens.
    options = {"parallel_count": 2, "listen": False, "lease": 2.0}
    async with QueueWorker(engine, {"work": gate}, hooks=[hook], **options, **QUICK):
        await add_job(pg_engine, "work")
        await settled(hook, 1)
        proxy.down_at(CLAIMS, delivered=delivered)
        job_id = await add_job(pg_engine, "work", max_retry_count=1)
        await until(proxy.tripped.is_set)
        proxy.up()
        await settled(hook, 2)
    assert hook.verdicts == ["completed"] * 2
    row = await row_of(pg_engine, job_id)
    assert (row.claim_no, row.lost, row.retry_count) == ((2, 1, 0) if delivered else (1, 0, 0))


# --- bounds and other ways to be away ---------------------------------------------------------------------------------


async def test_attempts_to_connect_are_bounded_while_the_database_is_away(away, pg_engine):
    proxy, engine = away
    gate = Gate()
    await add_jobs(pg_engine, [NewJob("long")] * 10)
    async with QueueWorker(engine, {"long": gate}, parallel_count=10, **QUICK) as worker:
        await until(lambda: len(gate.running) == 10)
        proxy.down()
        await until(lambda: not worker.healthy)
        before, began = proxy.attempts, time.monotonic()
        gate.open.set()
        await asyncio.sleep(2.0)  # the promise is on attempts a second: about one, for probe and listener each
        assert proxy.attempts - before <= 8 + 2 * (time.monotonic() - began)
        proxy.up()
        await until(lambda: worker.healthy)


async def test_a_worker_survives_the_end_of_all_its_backends(pg_engine):
    await make_effects(pg_engine)
    hook, gate = Recorder(), Gate()

    async def work(event, session, job):
        await note_effect(event, session, job)
        await gate(event, session, job)

    ids = await add_jobs(pg_engine, [NewJob("work", max_retry_count=1)] * 3)
    async with QueueWorker(pg_engine, {"work": work}, parallel_count=3, hooks=[hook], **QUICK) as worker:
        await until(lambda: len(gate.running) == 3)
        await end_backends(pg_engine)
        gate.open.set()
        await until(lambda: hook.verdicts.count("completed") == 3)
        await until(lambda: worker.healthy)
    assert await effects(pg_engine) == ids
    assert {(await row_of(pg_engine, job_id)).retry_count for job_id in ids} == {0}


async def end_backends(engine: AsyncEngine, which: str = "TRUE") -> int:
    """As an administrator: end all connections to the test's database, but this one."""
    ended = await raw(
        engine,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {which}",
    )
    return len(ended)


async def test_a_server_that_is_read_only_for_a_while_is_waited_for_and_found_again(away, pg_engine, caplog):
    _, engine = away
    gate, hook = Gate(), Recorder()
    ids = await add_jobs(pg_engine, [NewJob("long", max_retry_count=1)] * 3)
    database = pg_engine.url.database
    async with QueueWorker(engine, {"long": gate}, parallel_count=2, hooks=[hook], **QUICK) as worker:
        await until(lambda: len(gate.running) == 2)
        await raw(pg_engine, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        await end_backends(pg_engine)
        gate.open.set()
        await until(lambda: not worker.healthy)
        await asyncio.sleep(1.0)  # in which a worker that takes any answer for a good one would go up and down
        assert hook.states == ["started", "database_down"]
        assert hook.settled == []
        async with pg_engine.begin() as connection:
            await connection.execute(text("SET TRANSACTION READ WRITE"))
            await connection.execute(text(f"ALTER DATABASE {database} RESET default_transaction_read_only"))
        await settled(hook, 3)
    assert hook.verdicts == ["completed"] * 3
    assert [(await row_of(pg_engine, job_id)).claim_no for job_id in ids] == [1, 1, 1]
    assert changes(caplog) == [DOWN, UP]


# --- the listening connection -----------------------------------------------------------------------------------------


async def test_a_listener_that_is_ended_listens_again_and_the_poll_finds_what_it_missed(pg_engine, caplog):
    hook = Recorder()
    async with QueueWorker(pg_engine, {"note": nothing}, poll_interval=0.3, hooks=[hook]) as worker:
        await until(lambda: hook.listener == ["listening"])
        assert await end_backends(pg_engine, LISTENS) == 1
        await add_job(pg_engine, "note")
        await settled(hook, 1)
        await until(lambda: hook.listener == ["listening", "polling", "listening"])
        assert worker.healthy
    messages = [record.message for record in caplog.records if "listening" in record.message]
    assert [message.split(":")[0] for message in messages] == ["not listening, polling instead", "listening again"]
    assert hook.states == ["started", "stopping", "stopped"]


async def test_who_listens_again_takes_no_connection_that_the_worker_had(pg_engine):
    """On a server without a free one, the worker would have none left to renew its leases on."""
    of_this_database = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    hook = Recorder()
    async with QueueWorker(pg_engine, {"note": nothing}, poll_interval=3600, hooks=[hook]):
        await until(lambda: hook.listener == ["listening"])
        before = await raw(pg_engine, of_this_database)
        assert await end_backends(pg_engine, LISTENS) == 1
        await until(lambda: hook.listener == ["listening", "polling", "listening"])
        (listens,) = await raw(pg_engine, f"{of_this_database} AND {LISTENS}")
    assert len(before) > 2  # this test's own, the one that listened, and the worker's
    assert listens not in before


async def test_n3_a_half_open_listener_is_found_by_its_probe(away, pg_engine, monkeypatch, caplog):
    monkeypatch.setattr("queue_kit._wakeup.PROBE_EVERY", 0.1)
    monkeypatch.setattr("queue_kit._wakeup.PROBE_TIMEOUT", 0.5)
    proxy, through = away
    hook = Recorder()
    async with QueueWorker(pg_engine, {"note": nothing}, poll_interval=3600, listen=through, hooks=[hook]):
        await until(lambda: hook.listener == ["listening"])
        before = proxy.attempts
        proxy.stall()
        await until(lambda: "not listening, polling instead: TimeoutError" in caplog.text)
        await until(lambda: "listening again" in caplog.text)
        assert proxy.attempts > before
        await add_job(pg_engine, "note")
        await settled(hook, 1)


async def test_a_worker_on_a_stalled_network_stops_in_time_and_its_job_is_not_lost(away, pg_engine):
    proxy, engine = away
    gate = Gate()
    job_id = await add_job(pg_engine, "long")
    worker = QueueWorker(engine, {"long": gate}, grace=0.2, cancel_grace=1.0)
    await worker.start()
    await until(lambda: gate.running)
    proxy.stall()
    proxy.refusing = True
    await asyncio.wait_for(worker.stop(), 0.2 + 1.0 + 2.0)
    row = await row_of(pg_engine, job_id)
    assert (row.status, row.retry_count) == (1, 0)


# --- SQLite: a file that another program keeps ------------------------------------------------------------------------


@contextlib.contextmanager
def keeping(path: Path):
    """Another program holds the write lock."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def test_a_file_that_another_program_keeps_for_a_moment_loses_nothing(sqlite_path, caplog):
    engine = sqlite_engine(sqlite_path, busy_timeout=0.1)
    await make_effects(engine)
    gate, hook = Gate(), Recorder()

    async def work(event, session, job):
        await gate(event, session, job)
        if job.data["writes"]:
            await note_effect(event, session, job)

    ids = await add_jobs(engine, [NewJob("work", {"writes": n % 2}, max_retry_count=9) for n in range(4)])
    async with QueueWorker(engine, {"work": work}, parallel_count=2, hooks=[hook], **QUICK) as worker:
        await until(lambda: len(gate.running) == 2)
        with keeping(sqlite_path):
            with pytest.raises(DBAPIError, match="locked"):
                await add_job(engine, "work")
            gate.open.set()
            await until(lambda: not worker.healthy)
        await until(lambda: hook.verdicts.count("completed") == 4)
    rows = [await row_of(engine, job_id) for job_id in ids]
    assert {row.state for row in rows} == {JobState.completed}
    assert {row.lost for row in rows} == {0}
    assert await effects(engine) == ids[1::2]
    assert "Traceback" not in caplog.text
    await engine.dispose()
