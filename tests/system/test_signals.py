"""`QueueWorker.run()` in processes of their own: what SIGTERM and SIGINT do, once and twice, early and late, and to
handlers of every kind.
"""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import ConfigurationError, JobState, QueueWorker, add_job
from tests.crowd import Member, crowd
from tests.database.running import worker_rows
from tests.support import Recorder, row_of, until

SCRIPT = Path(__file__).with_name("signalled.py")
TERM, INT = signal.SIGTERM, signal.SIGINT

LONG = 600.0
AT_ONCE = 30.0
"""For what must not wait for any of the long times: leaving, and an interpreter that ends, on a busy machine."""


@contextlib.asynccontextmanager
async def worker(url: str, handler: str, **options: object) -> AsyncIterator[Member]:
    """A started process; it is gone afterwards, however the test ends."""
    async with crowd(SCRIPT, url, handler) as processes:
        yield await processes.start(**options)


async def end_of(process: Member, *, within: float) -> int:
    """Its exit status; nothing but its log may be on stderr."""
    status = await process.over(seconds=within)
    assert not [line for line in process.log if "Traceback" in line or "Task was destroyed" in line], process.log
    return status


async def nothing_is_held(engine: AsyncEngine, *job_ids: int) -> bool:
    """Whether no worker has a row, and no waiting job is leased or has anything counted."""
    rows = [await row_of(engine, job_id) for job_id in job_ids]
    held = [row for row in rows if row.worker_id is not None and not row.is_complete]
    counted = [row for row in rows if (row.retry_count, row.lost, row.errors) != (0, 0, None)]
    return not held and not counted and await worker_rows(engine) == []


@pytest.mark.parametrize("number", [TERM, INT])
async def test_p6_a_signal_finishes_what_runs_and_starts_nothing_more(engine, database_url, number):
    first, second = await add_job(engine, "work"), await add_job(engine, "work")
    async with worker(database_url, "finishes", grace=LONG) as process:
        await process.says("running")
        process.send(number)
        assert await end_of(process, within=AT_ONCE) == 0
    expected = ["ready", "started", "running", "stopping", "finished", "completed", "stopped", "left run"]
    assert process.lines == expected
    assert (await row_of(engine, first)).state is JobState.completed
    assert (await row_of(engine, second)).claim_no == 0
    assert await nothing_is_held(engine, first, second)


@pytest.mark.parametrize("number", [TERM, INT])
async def test_an_idle_worker_leaves_at_once(engine, database_url, number):
    async with worker(database_url, "finishes", grace=LONG, cancel_grace=LONG) as process:
        await process.says("started")
        process.send(number)
        assert await end_of(process, within=AT_ONCE) == 0
    assert await nothing_is_held(engine)


# The connections that a start takes: for the schema, for its row, for looking at its sessions; then it claims.
MOMENTS = ["connect:1", "checkin:1", "connect:2", "checkin:2", "checkout:3", "checkin:3", "checkin:5"]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_p9_a_signal_during_the_start_is_not_lost_and_ends_it_cleanly(engine, database_url, moment):
    job_id = await add_job(engine, "work")
    async with worker(database_url, "endless", signal_at=moment, grace=0.1) as process:
        await process.says("signalled")
        assert await end_of(process, within=AT_ONCE) == 0
    assert process.lines[-1] == "left run"
    assert await nothing_is_held(engine, job_id)


async def test_p9_a_signal_ends_a_start_whose_database_says_nothing():
    connected = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        with contextlib.suppress(OSError):
            await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with worker(f"postgresql+asyncpg://user@{host}:{port}/name", "endless") as process:
            await asyncio.wait_for(connected.wait(), 30)
            process.send(TERM)
            assert await end_of(process, within=AT_ONCE) == 0
    assert process.lines == ["ready", "left run"]


SECOND = [(TERM, TERM, 128 + 15), (INT, INT, 128 + 2), (TERM, INT, 128 + 2), (INT, TERM, 128 + 15)]


@pytest.mark.parametrize(("first", "second", "status"), SECOND)
async def test_p8_a_second_signal_leaves_at_once(engine, database_url, first, second, status):
    job_id = await add_job(engine, "work")
    async with worker(database_url, "endless", grace=LONG, cancel_grace=LONG) as process:
        await process.says("running")
        process.send(first)
        await process.says("stopping")
        process.send(second)
        assert await end_of(process, within=AT_ONCE) == status
    assert process.lines[-1] == "stopping"
    assert (await row_of(engine, job_id)).state is JobState.running  # its lease will lapse


@pytest.mark.parametrize(("handler", "status"), [("endless", 0), ("refuses", 1), ("stuck", 1)])
async def test_p7_after_the_grace_a_job_is_cut_off_and_given_back(engine, database_url, handler, status):
    job_id = await add_job(engine, "work")
    # Long enough for what is given back to be written on a busy machine too.
    async with worker(database_url, handler, grace=0.2, cancel_grace=2.0) as process:
        await process.says("running")
        process.send(TERM)
        assert await end_of(process, within=2.2 + AT_ONCE) == status
    assert {"released", "stopped"} <= set(process.lines)
    assert ("left run" in process.lines) is (status == 0)
    assert ("refused" in process.lines) is (handler == "refuses")
    assert await nothing_is_held(engine, job_id)


async def test_a_handler_that_exits_ends_its_job_and_not_the_process(engine, database_url):
    job_id = await add_job(engine, "work")
    async with worker(database_url, "exits") as process:
        await process.says("failed")
        process.send(TERM)
        assert await end_of(process, within=AT_ONCE) == 0
    assert (await row_of(engine, job_id)).errors[0]["class"] == "SystemExit"


# --- a handler that blocks the event loop -----------------------------------------------------------------------------

BLOCKING = ["sleeps", "waits in C"]


@pytest.mark.parametrize("handler", BLOCKING)
async def test_p8_a_second_signal_leaves_at_once_even_when_a_handler_blocks_the_event_loop(
    engine, database_url, handler
):
    await add_job(engine, "work")
    async with worker(database_url, handler, grace=LONG, cancel_grace=LONG) as process:
        await process.says("running")
        process.send(INT)
        process.send(TERM)  # two of a kind that wait together would be one; which of the two comes second is open
        assert await end_of(process, within=AT_ONCE) in (128 + INT, 128 + TERM)


@pytest.mark.parametrize("handler", BLOCKING)
async def test_a_handler_that_blocks_the_event_loop_keeps_no_process_beyond_its_deadline(engine, database_url, handler):
    job_id = await add_job(engine, "work")
    async with worker(database_url, handler, grace=0.2, cancel_grace=0.5) as process:
        await process.says("running")
        process.send(TERM)
        assert await end_of(process, within=0.7 + AT_ONCE) == 1
    assert (await row_of(engine, job_id)).state is JobState.running  # its lease will lapse


# --- other threads ----------------------------------------------------------------------------------------------------


async def test_run_is_refused_outside_the_main_thread_and_starts_nothing(engine):
    with pytest.raises(ConfigurationError, match=r"main thread.*use start\(\) and stop\(\)"):
        await asyncio.to_thread(asyncio.run, QueueWorker(engine, {}).run())
    assert await worker_rows(engine) == []


async def test_a_second_run_in_one_process_is_refused_and_the_first_goes_on(engine):
    hook = Recorder()
    first = asyncio.create_task(QueueWorker(engine, {}, hooks=[hook]).run())
    await until(lambda: hook.states)
    with pytest.raises(ConfigurationError, match=r"another worker's run\(\).*use start\(\) and stop\(\)"):
        await QueueWorker(engine, {}).run()
    signal.raise_signal(TERM)
    await asyncio.wait_for(first, AT_ONCE)
    assert hook.states == ["started", "stopping", "stopped"]


async def test_run_in_the_main_thread_hears_the_process_signal_and_takes_its_handlers_back(engine):
    before = signal.getsignal(TERM)
    hook = Recorder()
    for _ in range(2):
        hook.states.clear()
        running = asyncio.create_task(QueueWorker(engine, {}, hooks=[hook]).run())
        await until(lambda: hook.states)
        signal.raise_signal(TERM)
        await asyncio.wait_for(running, AT_ONCE)
        assert hook.states == ["started", "stopping", "stopped"]
        assert signal.getsignal(TERM) == before


async def test_while_run_works_garbage_is_not_looked_for_in_what_was_there_before(engine):
    hook = Recorder()
    running = asyncio.create_task(QueueWorker(engine, {}, hooks=[hook]).run())
    await until(lambda: hook.states)
    assert gc.get_freeze_count() > len(gc.get_objects())
    signal.raise_signal(TERM)
    await asyncio.wait_for(running, AT_ONCE)
    assert gc.get_freeze_count() == 0
