"""Claiming: which jobs, in which order, for whom, and what must not hold up the others."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from queue_kit import Handlers, Job, JobState, NewJob, QueueWorker, add_job, add_jobs
from queue_kit.models import FAILED
from tests.database.clock import database_now
from tests.database.running import Gate, lapse, nothing, raw
from tests.support import Recorder, change, move, row_of, until


@pytest.fixture
def ran() -> list[int]:
    return []


@pytest.fixture
def jobs(ran) -> Handlers:
    """Handlers `a`, `b` and `c` that note what ran."""
    handlers = Handlers()
    for name in "abc":

        @handlers.handler(name)
        async def note(event, session, job):
            ran.append(job.id)

    return handlers


# --- order ------------------------------------------------------------------------------------------------------------


async def test_the_order_is_priority_then_due_time_then_id(engine, jobs, ran):
    now = await database_now(engine)
    late, early = now - timedelta(seconds=10), now - timedelta(seconds=60)
    wanted = [("a", 3, late), ("b", 0, late), ("c", 3, early), ("a", 9, early), ("b", 3, late), ("a", 0, early)]
    ids = await add_jobs(engine, [NewJob(name, priority=p, scheduled_at=at) for name, p, at in wanted])
    await QueueWorker(engine, jobs).drain()
    assert ran == [ids[5], ids[1], ids[2], ids[0], ids[4], ids[3]]


@pytest.mark.parametrize("ignore", [False, True])
async def test_only_what_is_due_is_claimed_and_sorting_changes_nothing_but_the_order(engine, jobs, ran, ignore):
    due = await add_jobs(engine, [NewJob("a", priority=9 - n) for n in range(8)])
    later = await add_job(engine, "a", delay=1000, priority=0)
    counts = await QueueWorker(engine, jobs, unsafe_ignore_sorting=ignore, parallel_count=3).drain()
    assert counts["completed"] == 8
    assert sorted(ran) == sorted(due)
    assert (await row_of(engine, later)).state is JobState.scheduled
    await move(engine, later, scheduled_at=-1001)
    await QueueWorker(engine, jobs, unsafe_ignore_sorting=ignore).drain()
    assert ran[-1] == later


async def test_a_ready_row_whose_time_was_moved_into_the_future_does_not_run_early(engine, jobs, ran):
    job_id = await add_job(engine, "a")
    await change(engine, job_id, scheduled_at=await database_now(engine) + timedelta(hours=1))
    await change(engine, job_id, status=1)
    await QueueWorker(engine, jobs).drain()
    assert ran == []


async def test_other_jobs_may_run_between_a_failure_and_its_retry(engine, jobs, ran):
    @jobs.handler("fails", retry_delay=1000)
    async def fails(event, session, job):
        ran.append(job.id)
        if job.retry_count == 0:
            raise ValueError("once")

    first, second = await add_jobs(engine, [NewJob("fails", priority=0), NewJob("a", priority=9)])
    await QueueWorker(engine, jobs).drain()
    assert ran == [first, second]
    await move(engine, first, scheduled_at=-1001)
    await QueueWorker(engine, jobs).drain()
    assert ran == [first, second, first]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "claimed"),
    [
        ({}, "abc"),
        ({"included_names": ["b"]}, "b"),
        ({"included_names": []}, ""),
        ({"excluded_names": ["b"]}, "ac"),
        ({"excluded_names": []}, "abc"),
        ({"excluded_names": ["B", "unknown"]}, "abc"),
    ],
)
async def test_a_worker_claims_the_names_it_is_told_to(engine, jobs, ran, options, claimed):
    ids = dict(zip("abc", await add_jobs(engine, [NewJob(name) for name in "abc"]), strict=True))
    await QueueWorker(engine, jobs, **options).drain()
    assert ran == [ids[name] for name in claimed]


async def test_i7_a_name_without_a_handler_is_left_alone_and_blocks_nobody(engine, jobs, ran):
    unknown, known = await add_jobs(engine, [NewJob("unknown", priority=0), NewJob("a")])
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    assert ran == [known]
    row = await row_of(engine, unknown)
    assert (row.state, row.claim_no, row.retry_count, row.errors) == (JobState.ready, 0, 0, None)


# --- garbage ----------------------------------------------------------------------------------------------------------


async def how_it_ended(engine, job_id: int) -> tuple[int, str]:
    ((status, errors),) = await raw(
        engine, "SELECT status, CAST(errors AS TEXT) FROM queue_kit_job WHERE id = :id", id=job_id
    )
    return status, errors or ""


# What another program can write on SQLite, which checks no types; PostgreSQL stores none of it.
UNTYPED = {
    "data that is not JSON": "data = '{oops'",
    "data that is a blob": "data = x'ff00'",
    "data nested too deep": "data = '" + "[" * 200_000 + "]" * 200_000 + "'",
    "an empty due time": "scheduled_at = ''",
    "a created_at that is no time": "created_at = 'yesterday'",
    "a timeout that is text": "handler_timeout = 'long'",
    "a number of tries that is text": "max_retry_count = 'many'",
    "a priority that is text": "priority = 'high'",
    "a retry count that is text": "retry_count = 'few'",
    "a trace that is not JSON": "trace_context = '{oops'",
}


@pytest.mark.parametrize("garbage", UNTYPED.values(), ids=UNTYPED.keys())
async def test_i3_a_row_that_cannot_be_read_fails_with_a_reason_and_blocks_nobody(embedded_engine, jobs, ran, garbage):
    bad, good = await add_jobs(embedded_engine, [NewJob("a", priority=0), NewJob("b")])
    await raw(embedded_engine, f"UPDATE queue_kit_job SET {garbage} WHERE id = :id", id=bad)
    counts = await asyncio.wait_for(QueueWorker(embedded_engine, jobs, parallel_count=2).drain(), 15)
    assert ran == [good]
    assert counts == {**counts, "failed": 1, "completed": 1}
    status, errors = await how_it_ended(embedded_engine, bad)
    assert status == FAILED
    assert "the row cannot be read" in errors


async def test_json_that_python_cannot_read_fails_with_a_reason_and_blocks_nobody(engine, jobs, ran):
    data = "9" * 5_000
    bad, good = await add_jobs(engine, [NewJob("a", priority=0), NewJob("b")])
    await write_json(engine, bad, "data", f'{{"value": {data}}}')
    await asyncio.wait_for(QueueWorker(engine, jobs, parallel_count=2).drain(), 15)
    assert ran == [good]
    status, errors = await how_it_ended(engine, bad)
    assert status == FAILED
    assert "the row cannot be read" in errors


@pytest.mark.parametrize("payload", ["text", '{"looks": "like JSON"}', "5", 5, None, [], False])
async def test_payloads_that_are_no_objects_come_as_they_were_added(engine, payload):
    seen = []

    async def see(event, session, job: Job[Any]):
        seen.append(job.data)

    await add_jobs(engine, [NewJob("see", payload), NewJob("see", [payload])])
    await QueueWorker(engine, {"see": see}).drain()
    assert seen == [{} if payload is None else payload, [payload]]


async def write_json(engine, job_id: int, column: str, value: str) -> None:
    value_of = "CAST(:value AS JSONB)" if engine.name == "postgresql" else ":value"
    await raw(engine, f"UPDATE queue_kit_job SET {column} = {value_of} WHERE id = :id", value=value, id=job_id)


@pytest.mark.parametrize("scalar", ["5", '"text"', "null", "true", "[1]"])
async def test_a_payload_of_the_wrong_type_fails_with_a_reason_and_blocks_nobody(engine, jobs, ran, scalar):
    @jobs.handler("typed")
    async def typed(event, session, job: Job[dict[str, int]]):
        ran.append(job.id)

    bad, good = await add_jobs(engine, [NewJob("typed", priority=0), NewJob("a")])
    await write_json(engine, bad, "data", scalar)
    counts = await QueueWorker(engine, jobs).drain()
    assert (counts["failed"], counts["completed"]) == (1, 1)
    assert ran == [good]
    status, errors = await how_it_ended(engine, bad)
    assert status == FAILED
    assert "the payload is invalid" in errors


@pytest.mark.parametrize("errors", ["5", '"text"', "null", '{"a": 1}'])
async def test_a_garbage_errors_column_gives_way_to_the_next_error(engine, jobs, errors):
    @jobs.handler("fails", max_retry_count=1)
    async def fails(event, session, job):
        raise ValueError("recorded")

    bad, _ = await add_jobs(engine, [NewJob("fails"), NewJob("a")])
    await write_json(engine, bad, "errors", errors)
    counts = await QueueWorker(engine, jobs).drain()
    assert (counts["failed"], counts["completed"]) == (1, 1)
    assert [error["message"] for error in (await row_of(engine, bad)).errors] == ["recorded"]


# --- sharing ----------------------------------------------------------------------------------------------------------


async def test_two_workers_with_slow_handlers_share(engine):
    gate, hook = Gate(), Recorder()
    ids = await add_jobs(engine, [NewJob("slow")] * 4)
    workers = [QueueWorker(engine, {"slow": gate}, prefetch=0, hooks=[hook]) for _ in range(2)]
    async with workers[0], workers[1]:
        await until(lambda: len(gate.running) == 2)
        assert {record.worker_id for record in hook.started} == {worker.id for worker in workers}
        assert gate.running == set(ids[:2])
        rows = [await row_of(engine, job_id) for job_id in ids]
        assert [row.claim_no for row in rows] == [1, 1, 0, 0]
        gate.open.set()
        await until(lambda: len(hook.settled) == 4)
    assert sorted(gate.ran) == ids


async def test_a_better_job_that_comes_later_overtakes_what_waits(engine, jobs, ran):
    gate = Gate()
    jobs.handler("hold")(gate)
    await add_job(engine, "hold", priority=0)
    async with QueueWorker(engine, jobs, prefetch=0):
        await until(lambda: gate.running)
        worse = await add_job(engine, "a", priority=9)
        better = await add_job(engine, "b", priority=1)
        gate.open.set()
        await until(lambda: len(ran) == 2)
    assert ran == [better, worse]


# --- lapsed leases ----------------------------------------------------------------------------------------------------


async def test_one_lapse_is_free_even_for_a_job_with_a_single_try(engine, jobs):
    job_id = await add_job(engine, "a", max_retry_count=1)
    await lapse(engine, job_id)
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    row = await row_of(engine, job_id)
    assert (row.lost, row.retry_count, row.errors) == (1, 0, None)


async def test_further_lapses_count_as_tries_and_the_last_gives_up_with_a_reason(engine, jobs, ran):
    last, over = await add_jobs(engine, [NewJob("a", max_retry_count=2)] * 2)
    await lapse(engine, last, times=2)
    await lapse(engine, over, times=3)
    counts = await QueueWorker(engine, jobs).drain()
    assert (counts["completed"], counts["failed"]) == (1, 1)
    assert ran == [last]
    row = await row_of(engine, over)
    assert row.state is JobState.failed
    assert "lease lost 3 times" in row.errors[0]["reason"]


async def test_failed_runs_and_lapses_are_counted_together(engine, jobs, ran):
    job_id = await add_job(engine, "a", max_retry_count=3)
    await lapse(engine, job_id, times=3)
    await change(engine, job_id, retry_count=1)
    assert (await QueueWorker(engine, jobs).drain())["failed"] == 1
    assert ran == []


async def test_a_job_cancelled_while_it_lapsed_ends_cancelled_without_running(engine, jobs, ran):
    job_id = await add_job(engine, "a")
    await lapse(engine, job_id)
    await change(engine, job_id, cancel_requested=True)
    assert (await QueueWorker(engine, jobs).drain())["cancelled"] == 1
    assert ran == []
    assert (await row_of(engine, job_id)).state is JobState.cancelled


async def test_a_live_lease_of_another_worker_is_respected(engine, jobs, ran):
    job_id = await add_job(engine, "a")
    await change(engine, job_id, worker_id=uuid4(), lease_until=await database_now(engine) + timedelta(minutes=5))
    await QueueWorker(engine, jobs).drain()
    assert ran == []
    assert (await row_of(engine, job_id)).state is JobState.running


async def test_a_suspect_waits_until_it_can_run_alone(engine):
    neighbour, beside = Gate(), []

    async def suspect(event, session, job):
        await add_job(engine, "other", priority=9)  # a worker looks ahead of its last claim only now and then
        for _ in range(20):  # time enough for a worker that is woken to claim
            beside.append({*neighbour.running, *others.ran})
            await asyncio.sleep(0.01)

    others = Gate()
    others.open.set()
    handlers = {"neighbour": neighbour, "suspect": suspect, "other": others}
    later = NewJob("suspect", max_retry_count=9, delay=1000)
    first, poison = await add_jobs(engine, [NewJob("neighbour", priority=0), later])
    hook = Recorder()
    async with QueueWorker(engine, handlers, parallel_count=3, poll_interval=0.05, hooks=[hook]):
        await until(lambda: neighbour.running)
        await lapse(engine, poison, times=2)

        async def given_back() -> bool:
            row = await row_of(engine, poison)
            return row.claim_no == 2 and row.worker_id is None

        await until(given_back)
        assert hook.settled == []
        assert beside == []
        neighbour.open.set()
        await until(lambda: len(hook.settled) == 3)
    assert set().union(*beside) == set()
    assert [record.job.id for record in hook.settled][:2] == [first, poison]
    row = await row_of(engine, poison)
    assert (row.state, row.lost, row.retry_count) == (JobState.completed, 2, 0)


async def test_several_suspects_run_one_after_the_other(engine):
    running, most = set(), []

    async def suspect(event, session, job):
        running.add(job.id)
        await asyncio.sleep(0.05)
        most.append(len(running))
        running.discard(job.id)

    ids = await add_jobs(engine, [NewJob("suspect", max_retry_count=9)] * 3)
    for job_id in ids:
        await lapse(engine, job_id, times=2)
    hook = Recorder()
    async with QueueWorker(engine, {"suspect": suspect}, parallel_count=4, poll_interval=0.05, hooks=[hook]):
        await until(lambda: len(hook.settled) == 3)
    assert most == [1, 1, 1]


async def test_many_suspects_are_not_claimed_again_and_again(engine):
    ids = await add_jobs(engine, [NewJob("suspect", max_retry_count=9)] * 8 + [NewJob("other", priority=9)] * 4)
    for job_id in ids[:8]:
        await lapse(engine, job_id, times=2)
    counts = await QueueWorker(engine, {"suspect": nothing, "other": nothing}, parallel_count=4).drain()
    assert counts["completed"] == 12
    # Once when they lapsed, once to find out that there are several, once to run; not once for each of them that runs.
    assert max([(await row_of(engine, job_id)).claim_no for job_id in ids[:8]]) <= 3


async def test_suspects_that_are_due_together_are_all_drained_one_after_the_other(engine):
    running, most = set(), []

    async def note(event, session, job):
        running.add(job.id)
        await asyncio.sleep(0)
        most.append(len(running))
        running.discard(job.id)

    ids = await add_jobs(engine, [NewJob("suspect", max_retry_count=9)] * 3)
    for job_id in ids:
        await lapse(engine, job_id, times=2)
    counts = await QueueWorker(engine, {"suspect": note}, parallel_count=2).drain()
    assert (counts["completed"], most) == (3, [1, 1, 1])


async def test_the_log_says_once_that_jobs_wait_for_suspects(engine, caplog):
    ids = await add_jobs(engine, [NewJob("suspect", max_retry_count=9)] * 3 + [NewJob("other")] * 3)
    for job_id in ids[:3]:
        await lapse(engine, job_id, times=2)
    await QueueWorker(engine, {"suspect": nothing, "other": nothing}, parallel_count=2).drain()
    (told,) = [record for record in caplog.records if "runs alone" in record.message]
    assert told.message == f"job {ids[0]} suspect lost its lease 2 times, so it runs alone; other jobs wait"
    assert (told.levelname, told.job_id, told.job_name) == ("WARNING", ids[0], "suspect")
