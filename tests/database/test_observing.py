"""What who watches is told: the context in which a handler runs, when a run was due, and the fields of the log."""

import asyncio
import contextvars
import logging
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy.event import listen, remove
from sqlalchemy.orm import Session

from queue_kit import CronJob, Handlers, JobState, NewJob, QueueWorker, add_job, add_jobs, list_jobs, register_cron_jobs
from queue_kit.models import COMPLETED, FAILED
from tests.support import ADD_EFFECT, Recorder, make_effects, move, row_of, until

current = contextvars.ContextVar("current", default="nothing")


class Marking:
    """A hook that sets a context variable, as a tracer or a logger would."""

    def on_started(self, record):
        current.set(f"{current.get()} > job {record.job.id}")


@pytest.fixture
def at_commits() -> Iterator[list[str]]:
    """What the context variable was at each commit of a session."""
    seen = []

    def before_commit(session):
        seen.append(current.get())

    listen(Session, "before_commit", before_commit)
    yield seen
    remove(Session, "before_commit", before_commit)


# --- the context ------------------------------------------------------------------------------------------------------


async def test_a_handler_and_its_commit_see_what_hooks_set_and_the_next_job_does_not(engine, at_commits):
    await make_effects(engine)
    seen = []

    async def write(event, session, job):
        seen.append(current.get())
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    ids = await add_jobs(engine, [NewJob("write")] * 3)
    await QueueWorker(engine, {"write": write}, hooks=[Marking()]).drain()
    assert seen == [f"nothing > job {job_id}" for job_id in ids]
    assert [value for value in at_commits if "job" in value] == seen
    assert current.get() == "nothing"


async def test_several_hooks_share_the_context_in_the_order_in_which_they_are_called(engine):
    seen = []

    async def look(event, session, job):
        seen.append(current.get())

    job_id = await add_job(engine, "look")
    await QueueWorker(engine, {"look": look}, hooks=[Marking(), Marking()]).drain()
    assert seen == [f"nothing > job {job_id} > job {job_id}"]


# --- when it was due --------------------------------------------------------------------------------------------------


async def test_a_start_tells_when_this_run_was_due_also_of_a_retry_and_of_a_late_cron_job(engine):
    hook, jobs = Recorder(), Handlers()

    @jobs.handler("a", retry_delay=0, max_retry_count=3)
    async def fails(event, session, job):
        raise ValueError("no")

    await register_cron_jobs(engine, [CronJob("a", "0 0 1 1 *")])
    (job,) = await list_jobs(engine)
    await move(engine, job.id, scheduled_at=-10 * 366 * 86_400, cron_tick=-10 * 366 * 86_400)
    tick = (await row_of(engine, job.id)).scheduled_at
    await QueueWorker(engine, jobs, hooks=[hook]).drain()
    assert [record.job.scheduled_at for record in hook.started] == [tick] * 3
    first, second, third = (record.due for record in hook.started)
    assert first == tick
    assert tick + timedelta(days=365) < second <= third


# --- the log ----------------------------------------------------------------------------------------------------------


async def test_the_line_of_each_outcome_has_its_fields(engine, caplog):
    caplog.set_level(logging.INFO, "queue_kit")
    hook, jobs = Recorder(), Handlers()

    @jobs.handler("act", retry_delay=0)
    async def act(event, session, job):
        if job.data.get("fail"):
            raise ValueError("no")

    good, bad = await add_jobs(engine, [NewJob("act"), NewJob("act", {"fail": True})])
    worker = QueueWorker(engine, jobs, hooks=[hook])
    await worker.drain()
    lines = [record for record in caplog.records if hasattr(record, "job_outcome")]
    fields = ("job_id", "job_name", "job_attempt", "job_outcome", "job_error")
    assert sorted(tuple(getattr(line, field) for field in fields) for line in lines) == [
        (good, "act", 1, "completed", None),
        (bad, "act", 1, "retried", "ValueError"),
        (bad, "act", 2, "failed", "ValueError"),
    ]
    assert [line.job_seconds for line in lines] == [record.seconds for record in hook.settled]
    assert {line.worker_id for line in lines} == {str(record.worker_id) for record in hook.settled}
    assert {(line.name, line.msg) for line in lines} == {("queue_kit.worker", "job %s %s %s after %.3f s%s")}


class Raising(logging.Handler):
    """A handler of the log that always fails."""

    def emit(self, record):
        raise ValueError("a broken handler of the log")


@pytest.fixture
def broken_log(caplog) -> Iterator[None]:
    caplog.set_level(logging.INFO, "queue_kit")
    handler = Raising()
    logging.getLogger("queue_kit").addHandler(handler)
    yield
    logging.getLogger("queue_kit").removeHandler(handler)


@pytest.mark.parametrize("prefetch", [None, 0])
async def test_a_handler_of_the_log_that_fails_breaks_nothing(engine, broken_log, capsys, prefetch):
    class Broken:
        def on_settled(self, record):
            raise ValueError("a broken hook")

    async def note(event, session, job): ...

    async def write(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    async def fail(event, session, job):
        raise ValueError("plainly")

    await make_effects(engine)
    before = asyncio.all_tasks()
    hook = Recorder()
    handlers = {"note": note, "write": write, "fail": fail}
    ids = await add_jobs(engine, [NewJob(name) for name in ("note", "write", "fail") for _ in range(20)])
    options = {"parallel_count": 4, "max_retry_count": 1, "prefetch": prefetch}
    async with QueueWorker(engine, handlers, hooks=[Broken(), hook], **options) as worker:
        await until(lambda: len(hook.settled) == 60)
        assert worker.healthy
    assert asyncio.all_tasks() == before
    assert sorted(record.job.id for record in hook.settled) == ids
    states = [(await row_of(engine, job_id)).status for job_id in ids]
    assert states == [COMPLETED] * 40 + [FAILED] * 20
    assert hook.states[-1] == "stopped"
    assert "ValueError: a broken handler of the log" in capsys.readouterr().err


async def test_a_line_of_the_log_names_the_place_that_wrote_it(engine, caplog):
    caplog.set_level(logging.INFO, "queue_kit.worker")
    await QueueWorker(engine, {}).drain()
    places = {(record.module, record.funcName) for record in caplog.records if record.msg == "worker %s: %s"}
    assert places == {("_crew", "_announce")}


async def test_the_states_of_a_worker_are_logged_with_its_id(engine, caplog):
    caplog.set_level(logging.INFO, "queue_kit.worker")
    async with QueueWorker(engine, {}, listen=False) as worker:
        worker_id = worker.id
    lines = [(UUID(line.worker_id), line.worker_state) for line in caplog.records if hasattr(line, "worker_state")]
    assert lines == [(worker_id, state) for state in ("started", "stopping", "stopped")]


async def test_the_line_about_a_handler_that_refuses_to_end_names_its_job(engine, refusing, caplog):
    hook = Recorder()
    job_id = await add_job(engine, "refusing", handler_timeout=0.01)
    async with QueueWorker(engine, {"refusing": refusing}, cancel_grace=0.05, max_retry_count=1, hooks=[hook]):
        await until(lambda: hook.settled)
        (line,) = (record for record in caplog.records if "its slot goes to a replacement" in record.message)
        assert (line.job_id, line.job_name, line.job_attempt) == (job_id, "refusing", 1)
        refusing.let_go.set()
    assert (await row_of(engine, job_id)).state is JobState.failed
