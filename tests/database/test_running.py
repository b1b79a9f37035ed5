"""Running through a real worker: deadlines, handlers that refuse to end, what a handler may raise, and who is told."""

import asyncio
import contextvars
import logging
import math
import time
from datetime import timedelta

import pytest
from sqlalchemy.event import listen

from queue_kit import (
    DeadlineExceeded,
    Discard,
    Handler,
    Job,
    JobAborted,
    JobRow,
    JobState,
    NewJob,
    QueueWorker,
    Snooze,
    add_job,
    add_jobs,
)
from tests.database.running import nothing
from tests.support import Recorder, row_of, state_of, until

# --- timeouts ---------------------------------------------------------------------------------------------------------


# job, handler, worker, and the one that holds: seconds, `None` for no limit
TIMEOUTS = [
    (100, 200, 300, 100),
    (None, 200, 300, 200),
    (None, None, 300, 300),
    (None, None, timedelta(minutes=5), 300),
    (timedelta(seconds=100), 200, 300, 100),
    (0, 200, 300, 0),
    (None, 0, 300, 0),
    (None, None, 0, 0),
    (200, 0, 0, 200),
    (math.inf, 0, 0, None),
    (None, math.inf, 0, None),
    (None, None, math.inf, None),
]


async def test_the_timeout_is_the_jobs_else_the_handlers_else_the_workers(engine):
    seen: list[float | None] = []

    async def a(event, session, job):
        seen.append(event.signal.deadline)
        if limit == 0:
            await asyncio.Event().wait()

    for job, handler, worker, limit in TIMEOUTS:
        await add_job(engine, "a", handler_timeout=job)
        handlers = {"a": Handler(a, timeout=handler, max_retry_count=1)}
        counts = await QueueWorker(engine, handlers, handler_timeout=worker).drain()
        assert counts["failed"] == (limit == 0), (job, handler, worker)
        assert counts["completed"] == (limit != 0), (job, handler, worker)
    wanted = [limit for *_, limit in TIMEOUTS]
    rounded = [None if left is None else math.ceil(left / 100) * 100 for left in seen]  # some of it has gone already
    assert rounded == wanted


async def test_the_default_timeout_is_30_seconds(engine, jobs):
    seen = []

    @jobs.handler("a")
    async def a(event, session, job):
        seen.append(event.signal.deadline)

    await add_job(engine, "a")
    await QueueWorker(engine, jobs).drain()
    assert 10 < seen[0] <= 30


async def test_at_the_deadline_the_token_is_set_before_the_task_is_cancelled(engine, jobs):
    seen = []

    @jobs.handler("watches", timeout=0.05, max_retry_count=1)
    async def watches(event, session, job):
        reason = await event.signal.wait()
        seen.append((type(reason), event.signal.deadline, asyncio.current_task().cancelling()))
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(("cancelled", asyncio.current_task().cancelling()))

    job_id = await add_job(engine, "watches")
    await QueueWorker(engine, jobs).drain()
    assert seen == [(DeadlineExceeded, 0.0, 0), ("cancelled", 1)]
    row = await row_of(engine, job_id)
    assert (row.state, row.errors[0]["class"]) == (JobState.failed, "DeadlineExceeded")
    assert "0.05 s" in row.errors[0]["message"]


async def test_a_handler_that_ends_in_its_grace_keeps_its_slot_and_has_failed(engine, jobs, caplog):
    @jobs.handler("tidies", timeout=0.02, retry_delay=1000)
    async def tidies(event, session, job):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)

    job_id = await add_job(engine, "tidies")
    assert (await QueueWorker(engine, jobs).drain())["retried"] == 1
    assert [error["class"] for error in (await row_of(engine, job_id)).errors] == ["DeadlineExceeded"]
    assert "did not end" not in caplog.text


async def test_handlers_that_block_past_the_deadline_and_return_have_completed_also_beside_each_other(engine, jobs):
    @jobs.handler("block", timeout=0.02, max_retry_count=1)
    async def block(event, session, job):
        while event.signal.deadline > 0:
            time.sleep(0.005)
        time.sleep(0.03)  # by now it is over for whoever was started meanwhile

    await add_jobs(engine, [NewJob("block")] * 10)
    assert (await QueueWorker(engine, jobs, parallel_count=10).drain())["completed"] == 10


async def test_an_own_timeout_is_an_ordinary_failure(engine, jobs):
    tokens = []

    @jobs.handler("a", timeout=60, max_retry_count=1)
    async def a(event, session, job):
        tokens.append(event.signal)
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    job_id = await add_job(engine, "a")
    assert (await QueueWorker(engine, jobs).drain())["failed"] == 1
    assert (await row_of(engine, job_id)).errors[0]["class"] == "TimeoutError"
    assert not tokens[0].aborted


@pytest.mark.parametrize("use", ["start", "child", "span"])
async def test_start_child_and_span_raise_once_the_deadline_is_over(engine, jobs, use):
    raised = []

    @jobs.handler("a", timeout=0.02, max_retry_count=1)
    async def a(event, session, job):
        with event.span("before"):
            pass
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                match use:
                    case "start":
                        event.start("after")
                    case "child":
                        event.child()
                    case _:
                        with event.span("after"):
                            raise AssertionError("the span began") from None
            except JobAborted as error:
                raised.append(error)
                raise

    await add_job(engine, "a")
    hook = Recorder()
    await QueueWorker(engine, jobs, hooks=[hook]).drain()
    assert [type(error) for error in raised] == [DeadlineExceeded]
    assert [span.name for span in hook.settled[0].spans.children] == ["before"]


# --- what a handler raises --------------------------------------------------------------------------------------------


async def overflow():
    await overflow()


async def test_nothing_that_a_handler_raises_ends_the_worker(engine, jobs):
    jobs.add("note", nothing)
    errors = {
        "CancelledError": asyncio.CancelledError(),
        "SystemExit": SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "ExceptionGroup": ExceptionGroup("both", [ValueError("a"), TypeError("b")]),
        "BaseExceptionGroup": BaseExceptionGroup("both", [KeyboardInterrupt(), SystemExit()]),
        "GeneratorExit": GeneratorExit(),
        "RecursionError": None,
    }

    @jobs.handler("raises", max_retry_count=1)
    async def raises(event, session, job):
        if (error := errors[job.data["error"]]) is not None:
            raise error
        await overflow()

    hook = Recorder()
    ids = await add_jobs(engine, [NewJob("raises", {"error": name}) for name in errors])
    worker = QueueWorker(engine, jobs, parallel_count=2, poll_interval=0.1, hooks=[hook])
    async with worker:
        await until(lambda: len(hook.settled) == len(errors))
        await add_jobs(engine, [NewJob("note")] * 4)
        await until(lambda: len(hook.settled) == len(errors) + 4)
        assert worker.healthy
    assert hook.verdicts == ["failed"] * len(errors) + ["completed"] * 4
    assert [(await row_of(engine, job_id)).errors[0]["class"] for job_id in ids] == list(errors)


@pytest.mark.parametrize("kind", [ConnectionResetError, TimeoutError, FileNotFoundError, asyncio.CancelledError])
async def test_what_the_handlers_own_hooks_raise_at_the_last_flush_is_a_failed_try(engine, jobs, kind):
    # Three are OSErrors, as a lost connection is; but the connection is well, and to run it again changes nothing.
    def before_flush(*_):
        raise kind("of the application")

    @jobs.handler("flushes", max_retry_count=1)
    async def flushes(event, session, job):
        listen(session.sync_session, "before_flush", before_flush)
        session.add(JobRow(name="never"))

    job_id = await add_job(engine, "flushes")
    hook = Recorder()
    async with QueueWorker(engine, jobs, hooks=[hook]):
        await until(lambda: hook.settled)
        assert hook.verdicts[0] == "failed"
    row = await row_of(engine, job_id)
    assert (row.state, row.errors[0]["class"]) == (JobState.failed, kind.__name__)


# --- what stays in a run ----------------------------------------------------------------------------------------------


tenant = contextvars.ContextVar("tenant", default="nobody")


async def test_context_variables_do_not_leak_into_the_next_job(engine, jobs):
    seen = []

    @jobs.handler("sets")
    async def sets(event, session, job):
        seen.append(tenant.get())
        tenant.set(f"job {job.id}")
        await asyncio.sleep(0)
        assert tenant.get() == f"job {job.id}"

    tenant.set("host")
    await add_jobs(engine, [NewJob("sets")] * 4)
    assert (await QueueWorker(engine, jobs, parallel_count=1).drain())["completed"] == 4
    assert (seen, tenant.get()) == (["host"] * 4, "host")


# --- logs and spans ---------------------------------------------------------------------------------------------------


async def test_a_handlers_log_names_its_job(engine, jobs, caplog):
    @jobs.handler("logs", retry_delay=0)
    async def logs(event, session, job):
        event.log.warning("hello from %d", job.attempt, extra={"shop": "here"})
        if job.attempt == 1:
            raise ValueError("once more")

    job_id = await add_job(engine, "logs")
    await QueueWorker(engine, jobs).drain()
    records = [record for record in caplog.records if record.name == "queue_kit.job"]
    assert [(r.getMessage(), r.job_id, r.job_name, r.job_attempt, r.shop) for r in records] == [
        ("hello from 1", job_id, "logs", 1, "here"),
        ("hello from 2", job_id, "logs", 2, "here"),
    ]


async def test_the_spans_of_a_handler_that_forgot_reach_hooks_and_log(engine, jobs, caplog):
    caplog.set_level(logging.INFO, "queue_kit")

    @jobs.handler("spans", timeout=0.1, max_retry_count=1)
    async def spans(event, session, job):
        with event.span("list") as child, child.span("query"):
            pass
        event.child().start("forgotten")
        if job.data.get("late"):
            with event.span("during"):
                await asyncio.Event().wait()

    hook = Recorder()
    ids = await add_jobs(engine, [NewJob("spans"), NewJob("spans", {"late": True})])
    await QueueWorker(engine, jobs, hooks=[hook]).drain()
    logged = {record.job_id: record.job_spans for record in caplog.records if hasattr(record, "job_spans")}
    assert [logged[job_id] for job_id in ids] == [record.spans for record in hook.settled]
    prompt, late = (record.spans for record in hook.settled)
    assert [(root.name, [part.name for part in root.children]) for root in (prompt, late)] == [
        ("spans", ["list", "forgotten"]),
        ("spans", ["list", "forgotten", "during"]),
    ]
    assert [part.name for part in prompt.children[0].children] == ["query"]
    assert 0 <= prompt.children[0].duration <= prompt.duration <= hook.settled[0].seconds
    assert prompt.aborted is prompt.children[0].aborted is None
    assert late.aborted == late.children[2].aborted
    assert late.children[2].started <= late.aborted <= late.started + late.duration


async def test_payloads_are_never_logged(engine, jobs, refusing, caplog):
    caplog.set_level(logging.DEBUG, "queue_kit")
    hook = Recorder()
    jobs.add("refusing", refusing, timeout=0.02, max_retry_count=1)

    class Broken:
        def on_settled(self, record):
            raise ValueError("a broken hook")

    def bad_delay(attempt):
        raise ValueError("a broken delay")

    @jobs.handler("act", timeout=0.05, max_retry_count=2, retry_delay=bad_delay)
    async def act(event, session, job):
        match job.data["do"]:
            case "wait":
                await asyncio.Event().wait()
            case "fail":
                raise ValueError("plainly")
            case "snooze":
                raise Snooze(1000)
            case "discard":
                raise Discard

    @jobs.handler("typed", max_retry_count=1)
    async def typed(event, session, job: Job[list[int]]): ...

    secret = "Zx9-secret"  # pragma: allowlist secret
    deeds = ["return", "wait", "fail", "snooze", "discard"]
    await add_jobs(engine, [NewJob("act", {"do": deed, "password": secret}) for deed in deeds])
    await add_job(engine, "typed", [secret])
    await add_job(engine, "typed", {secret: 1})
    await add_job(engine, "refusing", {"password": secret}, priority=9)
    async with QueueWorker(engine, jobs, cancel_grace=0.05, poll_interval=0.1, hooks=[hook, Broken()]):
        await until(lambda: len({record.job.id for record in hook.settled}) == 8)
    refusing.let_go.set()
    first: dict[int, str] = {}
    for record in hook.settled:
        first.setdefault(record.job.id, record.outcome.verdict.value)
    assert list(first.values()) == ["completed", "retried", "retried", "snoozed", *["failed"] * 4]
    assert "the payload is invalid" in caplog.text
    assert "a broken hook" in caplog.text
    assert "a broken delay" in caplog.text
    everything = [caplog.text, *(repr(vars(record)) for record in caplog.records)]
    assert [text for text in everything if secret in text] == []


async def test_what_an_error_says_stays_on_one_line_of_the_log(engine, jobs, caplog):
    @jobs.handler("forges", max_retry_count=1)
    async def forges(event, session, job):
        raise ValueError("no\nCRITICAL forged\r\nby a payload \x1b[31m")

    await add_job(engine, "forges")
    await QueueWorker(engine, jobs).drain()
    (record,) = [record for record in caplog.records if "forged" in record.getMessage()]
    assert record.getMessage().isprintable()


async def test_a_handler_that_cancels_itself_and_returns_fails_and_keeps_no_slot(engine, jobs):
    jobs.add("note", nothing)

    @jobs.handler("cancels", max_retry_count=1)
    async def cancels(event, session, job):
        asyncio.current_task().cancel()

    hook = Recorder()
    await add_jobs(engine, [NewJob("cancels", priority=0), NewJob("note")])
    async with QueueWorker(engine, jobs, hooks=[hook]):
        await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == ["failed", "completed"]


# --- hooks ------------------------------------------------------------------------------------------------------------


async def test_hooks_hear_of_the_start_before_the_run_and_of_the_end_after_it_is_stored(engine, jobs):
    order = []

    class Hook:
        def on_started(self, record):
            order.append(("started", record.job.id, record.job.attempt))

        def on_settled(self, record):
            order.append(("settled", record.job.id, record.outcome.verdict.value))
            stored.append(asyncio.create_task(state_of(engine, record.job.id)))

    stored = []

    @jobs.handler("a", max_retry_count=1)
    async def a(event, session, job):
        order.append(("ran", job.id, job.attempt))
        if job.data.get("fail"):
            raise ValueError("no")

    first, second = await add_jobs(engine, [NewJob("a"), NewJob("a", {"fail": True})])
    worker = QueueWorker(engine, jobs, hooks=[Hook()])
    async with worker:
        await until(lambda: len(stored) == 2)
        assert await asyncio.gather(*stored) == [JobState.completed, JobState.failed]
    # A puller does not wait for its ending, so the next start may come before it.
    for job_id, verdict in ((first, "completed"), (second, "failed")):
        of_job = [entry for entry in order if entry[1] == job_id]
        assert of_job == [("started", job_id, 1), ("ran", job_id, 1), ("settled", job_id, verdict)]
    assert len(order) == 6


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()], ids=["error", "cancelled"])
async def test_a_hook_that_raises_is_named_and_harms_nothing(engine, jobs, caplog, error):
    jobs.add("note", nothing)

    class Raising:
        def on_started(self, record):
            raise error

        on_settled = on_worker_state = on_started

    hook = Recorder()
    ids = await add_jobs(engine, [NewJob("note")] * 3)
    worker = QueueWorker(engine, jobs, hooks=[Raising(), hook])
    async with worker:
        await until(lambda: len(hook.settled) == 3)
        assert worker.healthy
    assert [await state_of(engine, job_id) for job_id in ids] == [JobState.completed] * 3
    for method in ("on_started", "on_settled", "on_worker_state"):
        assert f"hook Raising.{method} failed" in caplog.text
