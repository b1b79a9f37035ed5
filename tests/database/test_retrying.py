"""Failing and retrying: how many tries a job has, how long it waits between them, what is kept of each, and which runs
count as none.
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from queue_kit import Discard, Handler, JobState, QueueWorker, Snooze, add_job, get_job
from queue_kit._claims import Claims
from queue_kit._spine import Spine
from tests.database.clock import database_now
from tests.database.running import Gate, lapse
from tests.support import ADD_EFFECT, Recorder, change, count_jobs, effects, make_effects, move, row_of, until

ROUNDING = timedelta(milliseconds=2)


class BrokenError(Exception):
    """What the handlers here raise."""


class Failing:
    """A handler that fails in each try up to `times`, and notes the tries."""

    def __init__(self, times: int = 1_000_000) -> None:
        self.times = times
        self.tries: list[int] = []

    async def __call__(self, event: Any, session: Any, job: Any) -> None:
        self.tries.append(job.attempt)
        if job.attempt <= self.times:
            raise BrokenError(f"try {job.attempt}")


class Raising:
    """A handler that raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def __call__(self, event: Any, session: Any, job: Any) -> None:
        raise self.error


# --- how many tries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "handler", "worker", "tries"),
    [
        ({}, {}, {}, 2),
        ({}, {}, {"max_retry_count": 4}, 4),
        ({}, {"max_retry_count": 3}, {"max_retry_count": 4}, 3),
        ({"max_retry_count": 1}, {"max_retry_count": 3}, {"max_retry_count": 4}, 1),
        ({"max_retry_count": 5}, {"max_retry_count": 1}, {}, 5),
    ],
)
async def test_the_tries_in_total_are_the_jobs_else_the_handlers_else_the_workers(engine, job, handler, worker, tries):
    fail = Failing()
    job_id = await add_job(engine, "fail", **job)
    handlers = {"fail": Handler(fail, retry_delay=0, **handler)}
    counts = await QueueWorker(engine, handlers, **worker).drain()
    assert fail.tries == list(range(1, tries + 1))
    assert (counts["retried"], counts["failed"], counts["completed"]) == (tries - 1, 1, 0)
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count, row.claim_no) == (JobState.failed, tries, tries)
    await QueueWorker(engine, handlers, max_retry_count=99).drain()
    assert len(fail.tries) == tries  # a failed job is closed, whatever a later worker would allow


async def test_a_job_that_succeeds_in_its_last_try_is_completed_and_keeps_its_errors(engine):
    fail = Failing(times=2)
    job_id = await add_job(engine, "fail", max_retry_count=3)
    await QueueWorker(engine, {"fail": fail}, retry_delay=0).drain()
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count) == (JobState.completed, 2)
    assert [error["message"] for error in row.errors] == ["try 1", "try 2"]


async def test_a_timeout_is_a_failed_try(engine):
    gate = Gate()
    job_id = await add_job(engine, "late", handler_timeout=0.02)
    counts = await QueueWorker(engine, {"late": gate}, retry_delay=0).drain()
    assert (counts["retried"], counts["failed"]) == (1, 1)
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count) == (JobState.failed, 2)
    assert [error["class"] for error in row.errors] == ["DeadlineExceeded", "DeadlineExceeded"]


# --- how long between them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failed_before", "handler", "worker", "shortest", "longest"),
    [
        (8, None, None, 128, 256),
        (30, None, None, 1_800, 3_600),
        (0, None, 500, 500, 500),
        (0, 700.5, 500, 700.5, 700.5),
        (0, timedelta(minutes=10), None, 600, 600),
        (4, lambda attempt: 100.0 * attempt, 9, 500, 500),
        (4, None, lambda attempt: timedelta(days=attempt), 432_000, 432_000),
    ],
    ids=[
        "exponential",
        "exponential at its cap",
        "the worker's",
        "the handler's",
        "the handler's timedelta",
        "the handler's function",
        "the worker's function",
    ],
)
async def test_a_retry_waits_by_the_databases_clock(engine, failed_before, handler, worker, shortest, longest):
    fail = Failing()
    job_id = await add_job(engine, "fail", max_retry_count=99)
    await change(engine, job_id, retry_count=failed_before)
    before = await database_now(engine)
    await QueueWorker(engine, {"fail": Handler(fail, retry_delay=handler)}, retry_delay=worker).drain()
    after = await database_now(engine)
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count, row.worker_id) == (JobState.scheduled, failed_before + 1, None)
    assert before + timedelta(seconds=shortest) - ROUNDING <= row.scheduled_at
    assert row.scheduled_at <= after + timedelta(seconds=longest) + ROUNDING
    await QueueWorker(engine, {"fail": fail}).drain()
    assert fail.tries == [failed_before + 1]
    await move(engine, job_id, scheduled_at=-longest - 1)
    await QueueWorker(engine, {"fail": fail}).drain()
    assert fail.tries == [failed_before + 1, failed_before + 2]


@pytest.mark.parametrize(
    "delay",
    [0, 0.2, lambda _attempt: -5.0],
    ids=["at once", "soon", "by a function into the past"],
)
async def test_a_retry_comes_when_it_is_due_and_not_with_a_poll(engine, delay):
    fail, hook = Failing(times=1), Recorder()
    await add_job(engine, "fail")
    async with QueueWorker(engine, {"fail": fail}, retry_delay=delay, poll_interval=600, listen=False, hooks=[hook]):
        await until(lambda: len(hook.settled) == 2)
    assert hook.verdicts == ["retried", "completed"]


def impossible(attempt: int) -> float:
    return 1 / (attempt - 1)


async def test_a_delay_function_that_fails_is_logged_and_the_job_is_retried_all_the_same(engine, caplog):
    hook = Recorder()
    job_id = await add_job(engine, "fail", max_retry_count=9)
    with caplog.at_level(logging.ERROR, "queue_kit.worker"):
        await QueueWorker(engine, {"fail": Failing(times=1)}, retry_delay=impossible, hooks=[hook]).drain()
    first = hook.settled[0].outcome
    assert (first.verdict, first.delay) == ("retried", 1.0)
    (logged,) = [record for record in caplog.records if "retry_delay" in record.getMessage()]
    assert "fail" in logged.getMessage()
    assert logged.exc_info
    assert [error["class"] for error in (await row_of(engine, job_id)).errors] == ["BrokenError"]


# --- what is kept -----------------------------------------------------------------------------------------------------


async def test_each_failure_is_kept_with_its_class_message_traceback_time_and_try(engine):
    async def fail(event, session, job):
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise BrokenError(f"try {job.attempt}") from cause

    job_id = await add_job(engine, "fail", {"secret": "hunter2"})
    await QueueWorker(engine, {"fail": fail}, retry_delay=0).drain()
    row = await row_of(engine, job_id)
    assert row.state is JobState.failed
    assert [(error["try"], error["class"], error["message"]) for error in row.errors] == [
        (1, "BrokenError", "try 1"),
        (2, "BrokenError", "try 2"),
    ]
    for error in row.errors:
        assert set(error) == {"at", "try", "class", "message", "traceback", "seconds"}
        assert abs(datetime.fromisoformat(error["at"]) - datetime.now(UTC)) < timedelta(minutes=1)
        assert "in fail" in error["traceback"]
        assert "KeyError: 'the cause'" in error["traceback"]
        assert "hunter2" not in error["traceback"]


def deep() -> Exception:
    error = ValueError("the first")
    for _ in range(3_000):
        later = ValueError("the last")
        later.__cause__ = error
        error = later
    return error


WHATEVER = {
    "text that no database stores": (ValueError("a\x00b\udc80c"), "ValueError", "a\\x00b\\udc80c"),
    "thousands of causes": (deep(), "ValueError", "the last"),
}


@pytest.mark.parametrize(("error", "kind", "message"), WHATEVER.values(), ids=WHATEVER.keys())
async def test_i4_whatever_a_handler_raises_is_a_failed_try_and_harms_no_other_job(engine, error, kind, message):
    later = Failing(times=0)
    job_id = await add_job(engine, "raises", priority=0, max_retry_count=2)
    await add_job(engine, "later")
    counts = await QueueWorker(engine, {"raises": Raising(error), "later": later}, retry_delay=0).drain()
    assert (counts["retried"], counts["failed"], counts["completed"]) == (1, 1, 1)
    row = await row_of(engine, job_id)
    assert row.state is JobState.failed
    assert [kept["class"] for kept in row.errors] == [kind, kind]
    assert message in row.errors[0]["message"]


async def test_the_last_ten_errors_are_kept(engine):
    job_id = await add_job(engine, "fail", max_retry_count=13)
    await QueueWorker(engine, {"fail": Failing()}, retry_delay=0).drain()
    row = await row_of(engine, job_id)
    assert row.retry_count == 13
    assert [error["try"] for error in row.errors] == list(range(4, 14))
    assert [error["message"] for error in row.errors] == [f"try {n}" for n in range(4, 14)]


async def test_a_drain_is_not_over_while_a_try_comes_back_that_began_behind_its_back(engine, monkeypatch):
    """The worker's timer finds a retry that is due, and may do so between two looks of the drain's own."""
    flushed, run_dry, tries, asked = Spine.flushed, Claims.run_dry, [], asyncio.Event()

    async def flushed_and_begun_again(self: Spine) -> None:
        before = len(tries)
        await flushed(self)
        if 0 < before < 5:
            await until(lambda: len(tries) > before)

    async def asked_to_run_dry(self: Claims, pullers: int) -> int:
        asked.set()
        delivered = await run_dry(self, pullers)
        asked.clear()
        return delivered

    monkeypatch.setattr(Spine, "flushed", flushed_and_begun_again)
    monkeypatch.setattr(Claims, "run_dry", asked_to_run_dry)

    async def fail(event, session, job):
        tries.append(job.attempt)
        await asked.wait()
        raise BrokenError(job.attempt)

    await add_job(engine, "fail", max_retry_count=5)
    counts = await QueueWorker(engine, {"fail": fail}, retry_delay=0).drain()
    assert (counts["retried"], counts["failed"]) == (4, 1)


@pytest.mark.parametrize("filler", ["x", "\x00", "\udc80"], ids=["plain", "NUL", "surrogate"])
async def test_long_messages_and_tracebacks_are_cut_in_their_middle(engine, filler):
    job_id = await add_job(engine, "raises", max_retry_count=1)
    await QueueWorker(engine, {"raises": Raising(ValueError(f"begin {filler * 100_000} end"))}).drain()
    (error,) = (await row_of(engine, job_id)).errors
    assert error["message"].startswith("begin ")
    assert error["message"].endswith(" end")
    assert error["traceback"].startswith("Traceback")
    assert error["traceback"].rstrip().endswith(" end")
    assert 1_900 < len(error["message"]) <= 2_000
    assert 7_900 < len(error["traceback"]) <= 8_000


# --- deleting what ended ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, "good bad discarded"),
        ({"keep_failed": False}, "good bad discarded"),
        ({"delete_job_on_completion": True}, "bad discarded"),
        ({"delete_job_on_completion": True, "keep_failed": False}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("used", [False, True], ids=["unused session", "used session"])
async def test_what_ended_is_kept_or_deleted_as_the_worker_is_told(engine, options, left, used):
    await make_effects(engine)

    async def end(event, session, job):
        if used:
            await session.execute(ADD_EFFECT, {"job_id": job.id})
        if job.name == "bad":
            raise BrokenError
        if job.name == "discarded":
            raise Discard

    names = ("good", "bad", "discarded")
    ids = {name: await add_job(engine, name, max_retry_count=1) for name in names}
    counts = await QueueWorker(engine, dict.fromkeys(names, end), **options).drain()
    assert (counts["completed"], counts["failed"]) == (1, 2)
    assert {name for name, job_id in ids.items() if await get_job(engine, job_id)} == set(left.split())
    assert await effects(engine) == ([ids["good"]] if used else [])


@pytest.mark.parametrize("keep_failed", [True, False])
async def test_a_job_that_will_be_retried_is_not_deleted_and_keeps_its_id(engine, keep_failed):
    fail = Failing(times=1)
    options = {"delete_job_on_completion": True, "keep_failed": keep_failed, "retry_delay": 1_000}
    job_id = await add_job(engine, "fail")
    await QueueWorker(engine, {"fail": fail}, **options).drain()
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count, len(row.errors)) == (JobState.scheduled, 1, 1)
    await move(engine, job_id, scheduled_at=-1_001)
    assert (await QueueWorker(engine, {"fail": fail}, **options).drain())["completed"] == 1
    assert await count_jobs(engine) == 0


# --- verdicts that count nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [1_000, 1_000.0, timedelta(seconds=1_000)], ids=repr)
async def test_a_snooze_comes_back_later_counts_nothing_and_forgives_lapses(engine, given):
    await make_effects(engine)

    async def snooze(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        raise Snooze(given)

    job_id = await add_job(engine, "snooze", max_retry_count=3)
    await lapse(engine, job_id)
    await change(engine, job_id, retry_count=1, errors=[{"try": 1}])
    before = await database_now(engine)
    counts = await QueueWorker(engine, {"snooze": snooze}).drain()
    after = await database_now(engine)
    assert counts == {**dict.fromkeys(counts, 0), "snoozed": 1}
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count, row.lost, row.worker_id) == (JobState.scheduled, 1, 0, None)
    assert row.errors == [{"try": 1}]
    waits = timedelta(seconds=1_000)
    assert before + waits - ROUNDING <= row.scheduled_at <= after + waits + ROUNDING
    assert await effects(engine) == []


async def test_a_job_with_a_single_try_may_snooze_as_often_as_it_likes(engine):
    attempts = []

    async def snooze(event, session, job):
        attempts.append(job.attempt)
        if len(attempts) < 5:
            raise Snooze(0)

    job_id = await add_job(engine, "snooze", max_retry_count=1)
    counts = await QueueWorker(engine, {"snooze": snooze}).drain()
    assert (counts["snoozed"], counts["completed"]) == (4, 1)
    assert attempts == [1] * 5
    row = await row_of(engine, job_id)
    assert (row.state, row.retry_count, row.errors) == (JobState.completed, 0, None)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e15, timedelta(seconds=-1), "soon"], ids=repr)
async def test_a_snooze_that_no_clock_can_add_is_a_failed_try(engine, seconds):
    async def snooze(event, session, job):
        raise Snooze(seconds)

    job_id = await add_job(engine, "snooze", max_retry_count=1)
    assert (await QueueWorker(engine, {"snooze": snooze}).drain())["failed"] == 1
    row = await row_of(engine, job_id)
    assert (row.state, row.errors[0]["class"]) == (JobState.failed, "ValueError")


@pytest.mark.parametrize(("verdict", "reason"), [(Discard("no such user"), "no such user"), (Discard(), "discarded")])
async def test_a_discarded_job_has_failed_now_with_its_reason(engine, verdict, reason):
    await make_effects(engine)

    async def discard(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        raise verdict

    job_id = await add_job(engine, "discard", max_retry_count=9)
    counts = await QueueWorker(engine, {"discard": discard}).drain()
    assert (counts["failed"], counts["retried"]) == (1, 0)
    row = await row_of(engine, job_id)
    assert row.state is JobState.failed
    (error,) = row.errors
    assert (error["class"], error["try"]) == ("Discard", 1)
    assert reason in error["reason"]
    assert await effects(engine) == []


async def test_shutdowns_count_nothing_however_many_cut_a_job_off(engine):
    await make_effects(engine)
    started, hook = asyncio.Event(), Recorder()

    async def write_and_wait(event, session, job):
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        started.set()
        await asyncio.Event().wait()

    job_id = await add_job(engine, "long", max_retry_count=1)
    before = await row_of(engine, job_id)
    for _ in range(3):
        async with QueueWorker(engine, {"long": write_and_wait}, hooks=[hook]) as worker:
            await asyncio.wait_for(started.wait(), 20)
            await worker.stop(grace=0)
        started.clear()
    assert hook.verdicts == ["released"] * 3
    row = await row_of(engine, job_id)
    assert (row.state, row.claim_no, row.worker_id) == (JobState.ready, 3, None)
    assert (row.retry_count, row.lost, row.errors, row.scheduled_at) == (0, 0, None, before.scheduled_at)
    assert await effects(engine) == []
    assert (await QueueWorker(engine, {"long": Failing(times=0)}).drain())["completed"] == 1
