"""A blocked event loop is reported while it is blocked, with the name of who blocks it and the line where it stands."""

import asyncio
import ctypes
import logging
import re
import threading
import time
from typing import Any

import pytest
from sqlalchemy import Engine, event

from queue_kit import Handlers, QueueWorker, add_job
from tests.support import Recorder, is_completed, until

LEASE = 3.0
"""A third of it is when a block is reported."""


def reports(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    """What was said of the event loop."""
    return [record.message for record in caplog.records if record.levelno == level and "event loop" in record.message]


def block_until_reported(caplog: pytest.LogCaptureFixture) -> None:
    deadline = time.monotonic() + 20
    while not reports(caplog):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("awaits_first", [False, True])
async def test_a_handler_that_blocks_the_loop_is_named_with_its_stack(engine, jobs, caplog, awaits_first):
    @jobs.handler("blocks")
    async def blocks(event: Any, session: Any, job: Any) -> None:
        if awaits_first:
            await asyncio.sleep(0)
        block_until_reported(caplog)

    hook = Recorder()
    async with QueueWorker(engine, jobs, parallel_count=3, lease=LEASE, hooks=[hook]):
        job_id = await add_job(engine, "blocks")
        await until(lambda: hook.settled)
        await until(lambda: reports(caplog, logging.WARNING))
    (report,) = reports(caplog)
    assert re.match(rf"job {job_id} blocks blocks the event loop, for \d\.", report)
    assert report.splitlines()[1].endswith(", in blocks")  # nothing of what calls it
    assert "in block_until_reported" in report
    assert "runs again" in reports(caplog, logging.WARNING)[0]


async def test_a_block_is_not_taken_for_a_process_that_stood_still(engine, jobs, caplog, monkeypatch):
    monkeypatch.setattr("queue_kit._watchdog.A_MOMENT", 600.0)  # however soon after its report a block ends

    @jobs.handler("blocks")
    async def blocks(event: Any, session: Any, job: Any) -> None:
        block_until_reported(caplog)

    async with QueueWorker(engine, jobs, lease=LEASE):
        job_id = await add_job(engine, "blocks")
        await until(lambda: reports(caplog))
    assert reports(caplog)[0].startswith(f"job {job_id} blocks blocks the event loop")
    assert "nothing ran in this process" not in caplog.text


async def test_what_blocks_outside_of_a_job_is_told_apart(engine, jobs, caplog):
    @jobs.handler("waits")
    async def waits(event: Any, session: Any, job: Any) -> None:
        await asyncio.sleep(600)

    async def host() -> None:
        block_until_reported(caplog)

    hook = Recorder()
    async with QueueWorker(engine, jobs, lease=LEASE, hooks=[hook], grace=0):
        await add_job(engine, "waits")
        await until(lambda: hook.started)
        await asyncio.create_task(host(), name="a request of the host's")
    assert reports(caplog)[0].startswith('task "a request of the host\'s" blocks the event loop')


async def test_a_handler_that_refuses_to_end_is_named_too(engine, jobs, caplog):
    let_go = asyncio.Event()

    @jobs.handler("refuses", timeout=0.05)
    async def refuses(event: Any, session: Any, job: Any) -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        block_until_reported(caplog)

    async with QueueWorker(engine, jobs, lease=LEASE, cancel_grace=0.05):
        job_id = await add_job(engine, "refuses", max_retry_count=1)
        await until(lambda: "its slot goes to a replacement" in caplog.text)
        let_go.set()
        await until(lambda: reports(caplog))
    assert reports(caplog)[0].startswith(f"job {job_id} refuses blocks the event loop")


async def test_a_loop_that_is_busy_but_not_blocked_is_left_alone(engine, jobs, caplog):
    @jobs.handler("busy")
    async def busy(event: Any, session: Any, job: Any) -> None:
        ends = time.monotonic() + LEASE
        while time.monotonic() < ends:
            await asyncio.sleep(0)

    job_id = await add_job(engine, "busy")
    async with QueueWorker(engine, jobs, lease=LEASE):
        await until(lambda: is_completed(engine, job_id))
    assert reports(caplog) == []


async def test_code_that_keeps_the_interpreter_to_itself_is_noticed_afterwards(engine, jobs, caplog, monkeypatch):
    monkeypatch.setattr("queue_kit._watchdog.A_MOMENT", 0.5)  # a busy loop takes its time to answer when it runs again

    @jobs.handler("keeps")
    async def keeps(event: Any, session: Any, job: Any) -> None:
        ctypes.PyDLL(None).usleep(int(LEASE * 1e6))  # a PyDLL does not let other threads run meanwhile

    async with QueueWorker(engine, jobs, lease=LEASE):
        await add_job(engine, "keeps")
        await until(lambda: "nothing ran in this process for" in caplog.text)
    assert reports(caplog) == []


async def test_its_thread_ends_with_the_worker(engine, jobs):
    def watching() -> int:
        return sum(thread.name == "queue_kit: watchdog" for thread in threading.enumerate())

    before = watching()
    async with QueueWorker(engine, jobs, lease=LEASE):
        assert watching() == before + 1
    await until(lambda: watching() == before)


async def test_a_blocked_loop_is_not_taken_for_a_database_that_is_away(pg_engine, caplog):
    hook, blocked = Recorder(), []

    def sent(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "UPDATE queue_kit_worker" in statement and not blocked:
            blocked.append(statement)
            # It is on its way when this comes, and a worker with this lease waits a second for the answer.
            asyncio.get_running_loop().call_soon(time.sleep, LEASE)

    async with QueueWorker(pg_engine, Handlers(), lease=LEASE, hooks=[hook]):
        event.listen(Engine, "before_cursor_execute", sent)
        try:
            await until(lambda: reports(caplog, logging.WARNING))  # the loop runs again
        finally:
            event.remove(Engine, "before_cursor_execute", sent)
    assert blocked
    assert "database_down" not in hook.states
    assert "does not answer" not in caplog.text
