"""Handlers that refuse to end, and what runs in threads and processes, through a real worker."""

import asyncio
import contextlib
import contextvars
import os
import re
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select, text

from queue_kit import (
    AbortToken,
    DeadlineExceeded,
    Discard,
    Job,
    JobRow,
    JobState,
    NewJob,
    QueueWorker,
    Snooze,
    add_job,
    add_jobs,
    cancel_job,
    in_process,
    in_thread,
)
from queue_kit.event import Event
from tests.conftest import engine_for
from tests.database.running import Gate, nothing
from tests.support import ADD_EFFECT, Recorder, effects, make_effects, state_of, until

tenant = contextvars.ContextVar("tenant", default="nobody")


def error_class(record) -> str | None:
    return (record.outcome.error or {}).get("class")


# --- handlers that refuse to end --------------------------------------------------------------------------------------


async def test_a_wedged_handler_is_named_and_loses_its_slot_to_a_replacement(engine, jobs, refusing, caplog):
    gate, hook = Gate(), Recorder()
    jobs.add("refusing", refusing, timeout=0.05, max_retry_count=1)
    jobs.add("gate", gate)
    wedged = await add_job(engine, "refusing", priority=0)
    worker = QueueWorker(engine, jobs, parallel_count=2, cancel_grace=0.05, poll_interval=0.1, hooks=[hook])
    async with worker:
        await until(lambda: len(hook.settled) == 1)
        assert hook.settled[0].seconds < 5  # 0.05 until the deadline, 0.05 of grace
        (told,) = re.findall(rf"job {wedged} refusing did not end ([\d.]+) s after it was cancelled", caplog.text)
        assert 0 < float(told) <= hook.settled[0].seconds + 0.05
        assert "DeadlineExceeded" in caplog.text
        assert (refusing.cancelled, await state_of(engine, wedged)) == (1, JobState.failed)
        await add_jobs(engine, [NewJob("gate")] * 2)
        await until(lambda: len(gate.running) == 2)  # as many at once as before: the slot has a replacement
        assert worker.healthy
        gate.open.set()
        await until(lambda: len(hook.settled) == 3)
        refusing.let_go.set()
    assert hook.verdicts == ["failed", "completed", "completed"]
    assert await state_of(engine, wedged) is JobState.failed


async def test_other_pullers_go_on_beside_a_handler_that_is_being_given_its_grace(engine, jobs, refusing):
    hook = Recorder()
    jobs.add("note", nothing)
    jobs.add("refusing", refusing, timeout=0.02, max_retry_count=1)
    await add_job(engine, "refusing", priority=0)
    async with QueueWorker(engine, jobs, parallel_count=2, cancel_grace=60, poll_interval=0.1, hooks=[hook]):
        await until(lambda: refusing.cancelled)
        await add_jobs(engine, [NewJob("note")] * 5)
        await until(lambda: len(hook.settled) == 5)
        refusing.let_go.set()
        await until(lambda: len(hook.settled) == 6)
    assert hook.verdicts == ["completed"] * 5 + ["failed"]


@pytest.mark.parametrize("wrote_before", [True, False])
async def test_a_wedged_handler_holds_no_lock_and_commits_nothing(engine, jobs, refusing, wrote_before):
    await make_effects(engine)
    hook = Recorder()
    raised: dict[str, str] = {}

    async def plainly(session):
        await session.commit()

    async def with_more(session):
        await session.execute(ADD_EFFECT, {"job_id": 1000})
        await session.commit()

    async def in_a_block(session):
        async with session.begin():
            await session.execute(ADD_EFFECT, {"job_id": 1001})

    async def beneath(session):
        await session.execute(ADD_EFFECT, {"job_id": 1002})
        await (await session.connection()).commit()

    @jobs.handler("wedged", timeout=1.0, max_retry_count=1)
    async def wedged(event, session, job):
        if wrote_before:
            await session.execute(ADD_EFFECT, {"job_id": job.id})
        await refusing(event, session, job)
        for attempt in (plainly, with_more, in_a_block, beneath):
            try:
                await attempt(session)
            except Exception as error:
                raised[attempt.__name__] = type(error).__name__
            with contextlib.suppress(Exception):
                await session.rollback()

    @jobs.handler("writes")
    async def writes(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": -1})

    job_id = await add_job(engine, "wedged", priority=0)
    async with QueueWorker(engine, jobs, cancel_grace=0.05, poll_interval=0.1, hooks=[hook]):
        await until(lambda: hook.settled)
        await add_job(engine, "writes")
        await until(lambda: len(hook.settled) == 2)
        assert await effects(engine) == [-1]
        refusing.let_go.set()
        await until(lambda: "beneath" in raised)
    assert hook.verdicts == ["failed", "completed"]
    assert set(raised) >= {"with_more", "in_a_block", "beneath"}
    assert "DeadlineExceeded" in raised.values()
    assert await effects(engine) == [-1]
    assert await state_of(engine, job_id) is JobState.failed


async def test_a_wedged_handler_leaves_no_broken_connection_to_the_application(engine, jobs, refusing):
    await make_effects(engine)
    hook = Recorder()
    jobs.add("note", nothing)

    @jobs.handler("wedged", timeout=1.0, max_retry_count=1)
    async def wedged(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        await refusing(event, session, job)

    await add_job(engine, "wedged", priority=0)
    worker = QueueWorker(engine, jobs, cancel_grace=0.05, poll_interval=0.1, hooks=[hook])
    async with worker:
        await until(lambda: hook.settled)
        assert refusing.cancelled == 1
        await using_all_connections(engine)
        refusing.let_go.set()
        await add_job(engine, "note")
        await until(lambda: len(hook.settled) == 2)
    await using_all_connections(engine)
    assert await effects(engine) == []


async def test_a_wedged_handler_that_keeps_using_its_session_holds_up_nobody(database_url, jobs):
    engine = engine_for(database_url, pool_size=3, max_overflow=0)  # handlers share one connection
    go, hook = asyncio.Event(), Recorder()

    @jobs.handler("loops", timeout=0.1, max_retry_count=1)
    async def loops(event, session, job):
        while not go.is_set():
            try:
                await session.execute(text("SELECT 1"))
                await asyncio.sleep(0.01)
            except BaseException:
                with contextlib.suppress(Exception):
                    await session.rollback()
                await asyncio.sleep(0.001)

    @jobs.handler("reads", timeout=3)
    async def reads(event, session, job):
        await session.execute(text("SELECT 1"))

    await add_job(engine, "loops", priority=0)
    try:
        async with QueueWorker(engine, jobs, cancel_grace=0.05, poll_interval=0.1, hooks=[hook]):
            await until(lambda: hook.settled)
            await add_job(engine, "reads")
            await until(lambda: len(hook.settled) == 2)
            go.set()
    finally:
        go.set()
        await engine.dispose()
    assert hook.verdicts == ["failed", "completed"]


async def using_all_connections(engine) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            connection = await stack.enter_async_context(engine.connect())
            assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
            await connection.rollback()


async def test_too_many_wedged_handlers_stop_the_claiming_until_they_end(engine, jobs, refusing):
    hook = Recorder()
    jobs.add("note", nothing)
    jobs.add("refusing", refusing, timeout=0.02, max_retry_count=1)
    *_, waiting = await add_jobs(engine, [*[NewJob("refusing", priority=0)] * 2, NewJob("note")])

    async def both_written() -> bool:
        return len(hook.settled) == 2 and await state_of(engine, waiting) is JobState.ready

    worker = QueueWorker(engine, jobs, cancel_grace=0.02, poll_interval=0.05, hooks=[hook])
    async with worker:
        assert worker.healthy
        await until(lambda: not worker.healthy)
        await until(both_written)
        await asyncio.sleep(0.3)  # some polls, all of which would find it
        assert (hook.verdicts, await state_of(engine, waiting)) == (["failed"] * 2, JobState.ready)
        refusing.let_go.set()
        await until(lambda: len(hook.settled) == 3)
        assert worker.healthy
    assert hook.verdicts == ["failed", "failed", "completed"]


async def test_hooks_are_told_of_it_and_the_recovery_waits_for_no_poll(engine, jobs, refusing, caplog):
    hook = Recorder()
    jobs.add("note", nothing)
    jobs.add("refusing", refusing, timeout=0.02, max_retry_count=1)
    await add_jobs(engine, [*[NewJob("refusing", priority=0)] * 2, NewJob("note")])
    async with QueueWorker(engine, jobs, cancel_grace=0.02, poll_interval=600, listen=False, hooks=[hook]):
        await until(lambda: "unhealthy" in hook.states)
        assert "2 handlers refuse to end" in caplog.text
        refusing.let_go.set()
        await until(lambda: len(hook.settled) == 3)
    assert hook.states == ["started", "unhealthy", "healthy", "stopping", "stopped"]


async def test_a_job_that_was_held_ahead_and_comes_back_late_waits_for_no_poll(pg_engine, jobs, refusing, monkeypatch):
    monkeypatch.setattr("queue_kit._pace.HORIZON", 600.0)  # however long the first run takes, the note is held ahead
    monkeypatch.setattr("queue_kit._claims.STALE", 600.0)  # and stays so
    hook = Recorder()
    jobs.add("note", nothing)
    jobs.add("refusing", refusing)
    _, second, note = await add_jobs(
        pg_engine,
        [NewJob("refusing", priority=0, handler_timeout=0.02), NewJob("refusing", priority=1), NewJob("note")],
    )
    options = {"lease": 1.5, "cancel_grace": 0.02, "poll_interval": 600, "listen": False, "hooks": [hook]}
    async with QueueWorker(pg_engine, jobs, max_retry_count=1, **options):
        await until(lambda: len(hook.started) == 2)
        async with pg_engine.connect() as user, user.begin():
            locked = await user.execute(select(JobRow.worker_id).where(JobRow.id == note).with_for_update())
            assert locked.scalar() is not None, "it is not held ahead"
            await cancel_job(pg_engine, second)
            await until(lambda: "unhealthy" in hook.states)
            refusing.let_go.set()
            await until(lambda: "healthy" in hook.states)
        await until(lambda: hook.verdicts.count("completed") == 1)


async def test_a_wedged_job_is_not_started_again_beside_itself(engine, jobs, refusing):
    hook, runs = Recorder(), []
    jobs.add("note", nothing)

    @jobs.handler("refusing", timeout=0.02, retry_delay=0)
    async def run(event, session, job):
        runs.append(job.attempt)
        if job.attempt == 1:
            await refusing(event, session, job)

    job_id = await add_job(engine, "refusing")
    async with QueueWorker(engine, jobs, cancel_grace=0.02, poll_interval=0.05, hooks=[hook]):
        await until(lambda: hook.settled)
        await add_job(engine, "note", priority=9)
        await until(lambda: len(hook.settled) == 2)  # it came after the retry in the order, but the retry had to wait
        assert runs == [1]
        refusing.let_go.set()
        await until(lambda: len(hook.settled) == 3)
    assert runs == [1, 2]
    assert (hook.verdicts, await state_of(engine, job_id)) == (
        ["retried", "completed", "completed"],
        JobState.completed,
    )


# --- threads and processes --------------------------------------------------------------------------------------------


async def test_a_thread_sees_the_token_and_what_it_raises_is_the_jobs(engine, jobs):
    seen = []

    def work(event: Event, job: Job) -> None:
        seen.append((job.id, tenant.get(), threading.current_thread() is threading.main_thread()))
        with event.span("in the thread"):
            match job.data["do"]:
                case "fail":
                    raise ValueError("in the thread")
                case "snooze":
                    raise Snooze(1000)
                case "wait":
                    until_aborted(event.signal)
                    seen.append(type(event.signal.reason))

    jobs.add("thread", in_thread(work), timeout=60, max_retry_count=1)
    deeds = ["return", "fail", "snooze", "wait"]
    new = [NewJob("thread", {"do": do}, handler_timeout=0.5 if do == "wait" else None) for do in deeds]
    ids = await add_jobs(engine, new)
    hook = Recorder()
    tenant.set("host")
    await QueueWorker(engine, jobs, hooks=[hook]).drain()
    assert seen == [*[(job_id, "host", False) for job_id in ids], DeadlineExceeded]
    assert hook.verdicts == ["completed", "failed", "snoozed", "failed"]
    assert [error_class(record) for record in hook.settled] == [None, "ValueError", None, "DeadlineExceeded"]
    assert [record.spans.children[0].name for record in hook.settled] == ["in the thread"] * 4


def until_aborted(signal: AbortToken) -> None:
    late = time.monotonic() + 20
    while not signal.aborted and time.monotonic() < late:
        time.sleep(0.002)


async def test_a_thread_that_goes_on_loses_its_slot_like_any_other(engine, jobs):
    go, hook = threading.Event(), Recorder()
    jobs.add("note", nothing)
    jobs.add("thread", in_thread(lambda event, job: go.wait(20)), timeout=0.05, max_retry_count=1)
    await add_job(engine, "thread", priority=0)
    try:
        async with QueueWorker(engine, jobs, cancel_grace=0.05, poll_interval=0.1, hooks=[hook]):
            await add_job(engine, "note")
            await until(lambda: len(hook.settled) == 2)
            assert [record.job.name for record in hook.settled] == ["thread", "note"]
            go.set()
    finally:
        go.set()
    assert hook.verdicts == ["failed", "completed"]


def in_child(data: dict) -> None:
    """Tell the process's id, then do as the data says."""
    path = Path(data["pid"])
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    match data["do"]:
        case "fail":
            raise ValueError("in the process")
        case "discard":
            raise Discard("in the process")
        case "hang":
            threading.Event().wait(60)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def test_a_process_answers_for_its_job_and_is_killed_at_the_deadline(engine, jobs, tmp_path):
    deeds, folder = ["return", "fail", "discard", "hang"], tmp_path / "pids"
    folder.mkdir()
    jobs.add("process", in_process(in_child, max_processes=1), timeout=60, max_retry_count=1)
    await add_jobs(
        engine,
        [
            NewJob("process", {"do": deed, "pid": str(folder / deed)}, handler_timeout=1 if deed == "hang" else None)
            for deed in deeds
        ],
    )
    hook = Recorder()
    async with QueueWorker(engine, jobs, cancel_grace=60, hooks=[hook]):
        await until(lambda: len(hook.settled) == 4)
    assert hook.verdicts == ["completed", "failed", "failed", "failed"]
    assert [error_class(record) for record in hook.settled] == [None, "ValueError", "Discard", "DeadlineExceeded"]
    (pid,) = {int(path.read_text()) for path in folder.iterdir()}
    assert pid != os.getpid()
    assert not is_alive(pid)
