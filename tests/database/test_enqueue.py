"""Adding jobs: whatever the way in, the caller's transaction decides, and the same rules hold."""

import asyncio
import contextlib
import json
import logging
import math
import random
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import RootModel
from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from queue_kit import (
    AmbiguousCommit,
    Enqueued,
    Handlers,
    InvalidJob,
    Job,
    JobRow,
    JobState,
    NewJob,
    QueueWorker,
    add_job,
    add_jobs,
    cancel_job,
    get_job,
    insert_jobs,
    install_hooks,
)
from queue_kit._dialect.columns import UtcDateTime
from tests.database.clock import WAYS, database_now, lease, reach, rows
from tests.database.running import nothing, statements
from tests.proxy import through_proxy
from tests.support import Recorder, count_jobs, row_of, until


@dataclass
class Email:
    to: str
    copies: int = 1


class Limit(RootModel[int | None]): ...


# --- the caller's transaction -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_job_is_added_with_its_defaults(engine, way):
    before = await database_now(engine)
    async with reach(engine, way) as db:
        job_id = await add_job(db, "email.send")
    after = await database_now(engine)
    row = await row_of(engine, job_id)
    assert type(job_id) is int
    assert (row.name, row.priority, row.data, row.state) == ("email.send", 5, {}, JobState.ready)
    assert (row.handler_timeout, row.max_retry_count, row.unique_key, row.errors) == (None, None, None, None)
    assert (row.retry_count, row.lost, row.claim_no, row.cancel_requested) == (0, 0, 0, False)
    assert (row.cron_name, row.cron_tick, row.worker_id, row.trace_context) == (None, None, None, None)
    assert before <= row.scheduled_at <= after
    assert row.scheduled_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("way", WAYS)
async def test_every_argument_is_stored(engine, way):
    at = datetime(2001, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)
    data = {"text": "grüße 🎉 \"' \\ $.x", "list": [1, 2.5, None, True, "7"], "deep": {"": {}}, "big": 2**60}
    async with reach(engine, way) as db:
        job_id = await add_job(
            db, "é", data, priority=0, scheduled_at=at, handler_timeout=2.5, max_retry_count=7, unique_key="order-7"
        )
    row = await row_of(engine, job_id)
    assert (row.name, row.data, row.priority, row.scheduled_at) == ("é", data, 0, at)
    assert (row.handler_timeout, row.max_retry_count, row.unique_key) == (2.5, 7, "order-7")


async def test_timeouts_are_seconds_and_may_be_zero_or_without_end(engine):
    given = [0, 1.5, math.inf, timedelta(minutes=2), None]
    await add_jobs(engine, [NewJob("a", handler_timeout=timeout) for timeout in given])
    assert [row.handler_timeout for row in await rows(engine)] == [0, 1.5, math.inf, 120, None]


async def test_any_json_value_may_be_the_data(engine):
    given = [[], [1, "a"], "text", "7", "null", 7, 2**60, 1.5, 0.1 + 0.2, True, False, 0, ["null"], {"a": None}]
    await add_jobs(engine, [NewJob("a", data) for data in given])
    for data in given:
        await add_job(engine, "a", data)
    stored = [row.data for row in await rows(engine)]
    assert [(type(data), data) for data in stored] == [(type(data), data) for data in given * 2]


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_c6_a_rolled_back_job_never_existed(engine, way):
    with contextlib.suppress(ZeroDivisionError):
        async with reach(engine, way) as db:
            one = await add_job(db, "a", unique_key="k")
            many = await add_jobs(db, [NewJob("a"), NewJob("a")])
            raise ZeroDivisionError
    assert [await get_job(engine, job_id) for job_id in (one, *many)] == [None] * 3
    assert await add_job(engine, "a", unique_key="k") is not None


@pytest.mark.parametrize("way", ["session", "connection"])
async def test_nothing_is_committed_for_the_caller(engine, way):
    async with reach(engine, way) as db:
        await add_job(db, "a")
        assert db.in_transaction()
        await db.rollback()
    assert await count_jobs(engine) == 0


async def test_a_savepoint_of_the_caller_decides_as_well(engine):
    async with AsyncSession(engine) as session, session.begin():
        kept = await add_job(session, "kept")
        savepoint = await session.begin_nested()
        await add_job(session, "gone")
        await savepoint.rollback()
    assert [row.id for row in await rows(engine)] == [kept]


async def test_anything_else_is_no_database(engine):
    for wrong in (engine.sync_engine, "postgresql://", None):
        with pytest.raises(TypeError, match="AsyncSession, AsyncConnection or AsyncEngine"):
            await add_job(wrong, "a")


async def test_a_forgotten_database_is_what_is_said_first(jobs):
    @jobs.handler("mail")
    async def mail(event, session, job: Job[Email]): ...

    with pytest.raises(TypeError, match=r"^db must be an AsyncSession.*, not Email$"):
        await mail.add(Email("ada"))
    with pytest.raises(TypeError, match=r"^db must be an AsyncSession.*, not str$"):
        await add_job("mail", {"to": "ada"})


# --- many at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_bulk_ids_come_in_the_order_of_the_jobs(engine, way):
    shuffled = random.Random(7)
    new = [
        NewJob("n", {"at": at}, priority=at % 9, unique_key=f"k{shuffled.random()}" if at % 3 else None)
        for at in range(300)
    ]
    async with reach(engine, way) as db:
        ids = await add_jobs(db, new)
    by_id = {row.id: row for row in await rows(engine)}
    assert len(by_id) == 300
    assert [by_id[job_id].data["at"] for job_id in ids] == list(range(300))
    assert [by_id[job_id].unique_key for job_id in ids] == [job.unique_key for job in new]
    plain = [job_id for job_id, job in zip(ids, new, strict=True) if job.unique_key is None]
    assert plain == sorted(plain)


@pytest.mark.parametrize("way", WAYS)
async def test_adding_no_jobs_is_harmless(engine, way):
    async with reach(engine, way) as db:
        assert await add_jobs(db, []) == []


async def test_only_new_jobs_can_be_added_in_bulk(engine):
    with pytest.raises(InvalidJob, match="NewJob"):
        await add_jobs(engine, [NewJob("a"), "b"])
    assert await count_jobs(engine) == 0


async def test_ids_are_64_bit(engine, jobs):
    jobs.add("big", nothing)
    big = 2**40 + 7
    async with AsyncSession(engine) as session, session.begin():
        session.add(JobRow(id=big, name="big"))
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    assert (await get_job(engine, big)).state is JobState.completed


# --- the other ways in ------------------------------------------------------------------------------------------------

# Each adds one job named "in" in the caller's transaction, due at an instant or (None) now.


async def by_add_job(session: AsyncSession, at: datetime | None) -> None:
    await add_job(session, "in", scheduled_at=at)


async def by_add_jobs(session: AsyncSession, at: datetime | None) -> None:
    await add_jobs(session, [NewJob("in", scheduled_at=at)])


async def by_handler(session: AsyncSession, at: datetime | None) -> None:
    await Handlers().add("in", nothing).add(session, scheduled_at=at)


async def by_orm(session: AsyncSession, at: datetime | None) -> None:
    session.add(JobRow(name="in") if at is None else JobRow(name="in", scheduled_at=at))
    await session.flush()


async def by_sync_session(session: AsyncSession, at: datetime | None) -> None:
    def add(sync: Session) -> None:
        sync.execute(insert_jobs([NewJob("in", scheduled_at=at)]))

    await session.run_sync(add)


async def by_plain_sql(session: AsyncSession, at: datetime | None) -> None:
    if at is None:
        await session.execute(text("INSERT INTO queue_kit_job (name) VALUES ('in')"))
    else:
        insert = text("INSERT INTO queue_kit_job (name, scheduled_at) VALUES ('in', :at)")
        await session.execute(insert.bindparams(bindparam("at", at, type_=UtcDateTime())))


WAYS_IN = [by_add_job, by_add_jobs, by_handler, by_orm, by_sync_session, by_plain_sql]


async def test_every_way_in_has_the_same_defaults_and_runs(engine, jobs):
    jobs.add("in", nothing)
    before = await database_now(engine)
    for way_in in WAYS_IN:
        async with AsyncSession(engine) as session, session.begin():
            await way_in(session, None)
    after = await database_now(engine)
    for way_in, row in zip(WAYS_IN, await rows(engine), strict=True):
        assert (row.state, row.priority, row.data) == (JobState.ready, 5, {}), way_in
        assert before <= row.scheduled_at <= after, way_in
    assert (await QueueWorker(engine, jobs).drain())["completed"] == len(WAYS_IN)


async def test_every_way_in_places_the_job_by_its_due_time(engine, jobs):
    jobs.add("in", nothing)
    future = (await database_now(engine) + timedelta(hours=1)).replace(microsecond=0)
    past = future - timedelta(hours=2)
    for way_in in WAYS_IN:
        async with AsyncSession(engine) as session, session.begin():
            await way_in(session, future)
            await way_in(session, past)
    placed = [(row.state, row.scheduled_at) for row in await rows(engine)]
    expected = [(JobState.scheduled, future), (JobState.ready, past)]
    assert {way_in.__name__: placed[2 * at : 2 * at + 2] for at, way_in in enumerate(WAYS_IN)} == {
        way_in.__name__: expected for way_in in WAYS_IN
    }
    assert (await QueueWorker(engine, jobs).drain())["completed"] == len(WAYS_IN)
    assert {row.scheduled_at for row in await rows(engine, JobRow.state == "scheduled")} == {future}


async def test_c6_every_way_in_is_undone_by_the_callers_rollback(engine):
    for way_in in WAYS_IN:
        async with AsyncSession(engine) as session:
            await way_in(session, None)
            await session.rollback()
        assert await count_jobs(engine) == 0, way_in


async def test_the_statement_works_in_a_sync_session_and_on_a_connection(engine):
    def insert(sync: Any) -> Any:
        return sync.execute(insert_jobs([NewJob("a", {"x": 1}), NewJob("a", unique_key="k")])).all()

    async with AsyncSession(engine) as session, session.begin():
        stored = await session.run_sync(insert)
    async with engine.begin() as connection:
        (again,) = await connection.run_sync(insert)
    assert {row.unique_key for row in stored} == {None, "k"}
    assert again.unique_key is None  # the one whose key was taken is skipped
    assert [row.id for row in await rows(engine)] == sorted([*(row.id for row in stored), again.id])


def test_the_statement_needs_a_job():
    with pytest.raises(ValueError, match="at least one job"):
        insert_jobs([])


# --- due times --------------------------------------------------------------------------------------------------------


async def test_a_delay_counts_from_the_databases_now(engine):
    before = await database_now(engine)
    for delay in (3_600, 3_600.0, timedelta(hours=1)):
        await add_job(engine, "a", delay=delay)
        await add_jobs(engine, [NewJob("a", delay=delay)])
    after = await database_now(engine)
    for row in await rows(engine):
        assert row.state is JobState.scheduled
        assert before <= row.scheduled_at - timedelta(hours=1) <= after


async def test_a_delay_of_zero_is_due_now(engine, jobs):
    jobs.add("a", nothing)
    await add_job(engine, "a", delay=0)
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1


async def test_any_time_zone_names_the_same_instant(engine):
    at = datetime(2099, 7, 1, 12, tzinfo=UTC)
    job_id = await add_job(engine, "a", scheduled_at=at.astimezone(ZoneInfo("Asia/Tokyo")))
    assert (await row_of(engine, job_id)).scheduled_at == at


async def test_now_is_the_databases_clock_and_not_the_processes(engine, jobs, monkeypatch):
    class Wrong(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=3)

    monkeypatch.setattr(time, "time", lambda: 0.0)
    for name, module in list(sys.modules.items()):
        if name.startswith("queue_kit") and getattr(module, "datetime", None) is datetime:
            monkeypatch.setattr(module, "datetime", Wrong)
    send = jobs.add("a", nothing)
    await add_job(engine, "a")
    await add_jobs(engine, [NewJob("a")])
    await add_job(engine, "a", delay=60)
    await send.add(engine)
    async with AsyncSession(engine) as session, session.begin():
        session.add(JobRow(name="a"))
    monkeypatch.undo()
    now = await database_now(engine)
    assert all(abs(row.scheduled_at - now) < timedelta(minutes=2) for row in await rows(engine))


# --- unique keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_one_live_job_holds_a_key(engine, way):
    async with reach(engine, way) as db:
        first = await add_job(db, "a", {"n": 1}, unique_key="k")
        assert await add_job(db, "b", {"n": 2}, unique_key="k") is None
    (row,) = await rows(engine)
    assert (row.id, row.name, row.data) == (first, "a", {"n": 1})


@pytest.mark.parametrize("way", WAYS)
async def test_of_duplicates_in_bulk_the_first_is_stored(engine, way):
    await add_job(engine, "held", unique_key="taken")
    keys = ["b", None, "a", "b", "taken", None, "a", "c", "b"]
    async with reach(engine, way) as db:
        ids = await add_jobs(db, [NewJob("n", {"at": at}, unique_key=key) for at, key in enumerate(keys)])
    assert [job_id is None for job_id in ids] == [False, False, False, True, True, False, True, False, True]
    stored = {row.id: row.data["at"] for row in await rows(engine, JobRow.name == "n")}
    assert [stored[job_id] for job_id in ids if job_id is not None] == [0, 1, 2, 5, 7]


async def test_a_scheduled_and_a_running_job_hold_their_keys(engine):
    await add_job(engine, "a", delay=1_000, unique_key="later")
    running = await add_job(engine, "a", unique_key="now")
    await lease(engine, running)
    assert await add_job(engine, "a", unique_key="later") is None
    assert await add_job(engine, "a", unique_key="now") is None


async def test_a_completed_failed_or_cancelled_job_frees_its_key(engine, jobs):
    @jobs.handler("fail", max_retry_count=1)
    async def fail(event, session, job):
        raise ValueError

    jobs.add("ok", nothing)
    await add_job(engine, "ok", unique_key="completed")
    await add_job(engine, "fail", unique_key="failed")
    cancelled = await add_job(engine, "ok", delay=1_000, unique_key="cancelled")
    await cancel_job(engine, cancelled)
    await QueueWorker(engine, jobs).drain()
    ids = await add_jobs(engine, [NewJob("ok", unique_key=key) for key in ("completed", "failed", "cancelled")])
    assert None not in ids


async def test_a_job_that_will_be_retried_keeps_its_key(engine, jobs):
    @jobs.handler("fail", retry_delay=1_000)
    async def fail(event, session, job):
        raise ValueError

    await add_job(engine, "fail", unique_key="k")
    assert (await QueueWorker(engine, jobs).drain())["retried"] == 1
    assert await add_job(engine, "fail", unique_key="k") is None


async def test_c5_concurrent_bulk_inserts_of_the_same_keys_never_deadlock(engine):
    keys = [f"key-{number}" for number in range(150)]
    stored: list[list[int | None]] = []

    async def add(seed: int) -> None:
        for round_number in range(3):
            shuffled = random.Random(f"{seed} {round_number}").sample(keys, len(keys))
            new = [NewJob("n", {"key": key}, unique_key=f"{round_number} {key}") for key in shuffled]
            stored.append(await add_jobs(engine, new))

    async with asyncio.timeout(30):
        await asyncio.gather(*(add(seed) for seed in range(8)))
    assert await count_jobs(engine) == 3 * len(keys)
    assert sum(job_id is not None for ids in stored for job_id in ids) == 3 * len(keys)


# --- typed by their handler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_handler_adds_its_own_jobs(engine, jobs, way):
    @jobs.handler("email.send")
    async def send(event, session, job: Job[Email]):
        pass

    async with reach(engine, way) as db:
        one = await send.add(db, Email("a@b.c"), priority=1, delay=60, max_retry_count=3, handler_timeout=9)
        key = await send.add(db, Email("k"), unique_key="k")
        taken = await send.add(db, Email("k"), unique_key="k")
        (new,) = await add_jobs(db, [send.new(Email("d@e.f", copies=2), priority=2)])
    row = await row_of(engine, one)
    assert (row.name, row.data, row.priority) == ("email.send", {"to": "a@b.c", "copies": 1}, 1)
    assert (row.max_retry_count, row.handler_timeout, row.state) == (3, 9, JobState.scheduled)
    assert (await row_of(engine, new)).data == {"to": "d@e.f", "copies": 2}
    assert key is not None
    assert taken is None


def test_a_new_job_keeps_the_typed_value(jobs):
    @jobs.handler("email.send")
    async def send(event, session, job: Job[Email]):
        pass

    new = send.new(Email("a@b.c"), delay=timedelta(minutes=1))
    assert (new.data, new.payload, new.delay) == (Email("a@b.c"), {"to": "a@b.c", "copies": 1}, 60.0)


async def test_a_copy_with_other_data_stores_the_other_data(engine, jobs):
    @jobs.handler("email.send")
    async def send(event, session, job: Job[Email]):
        pass

    typed = replace(send.new(Email("a@b.c"), priority=2), data=Email("d@e.f"))
    plain = replace(NewJob("plain", {"n": 1}), data={"n": 2})
    ids = await add_jobs(engine, [typed, plain])
    assert [(row.data, row.priority) for row in [await row_of(engine, id_) for id_ in ids]] == [
        ({"to": "d@e.f", "copies": 1}, 2),
        ({"n": 2}, 5),
    ]
    with pytest.raises(InvalidJob, match="must be Email"):
        replace(typed, data="a@b.c")
    assert asdict(typed)["payload"] == {"to": "d@e.f", "copies": 1}


async def test_a_typed_value_may_be_null_in_json(engine, jobs):
    ran = []

    @jobs.handler("limit.set")
    async def set_limit(event, session, job: Job[Limit]):
        ran.append(job.data)

    id_ = await set_limit.add(engine, Limit(None))
    assert (await row_of(engine, id_)).data is None
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    assert ran == [Limit(None)]


async def test_a_wrong_payload_is_refused_by_its_handler(engine, jobs):
    @jobs.handler("email.send")
    async def send(event, session, job: Job[Email]):
        pass

    with statements() as seen:
        for wrong, path in (({"to": 7}, "$.to"), ({}, "$.to"), (None, "$.to"), ("text", "$"), ([], "$")):
            with pytest.raises(InvalidJob) as refused:
                await send.add(engine, wrong)
            assert (refused.value.field, refused.value.path) == ("data", path)
            with pytest.raises(InvalidJob):
                send.new(wrong)
    assert seen == []
    assert await count_jobs(engine) == 0


# --- what is refused --------------------------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


AWARE = datetime(2030, 1, 1, tzinfo=UTC)

BAD = {
    "empty name": ("name", {"name": ""}),
    "blank name": ("name", {"name": "  "}),
    "long name": ("name", {"name": "x" * 201}),
    "no name": ("name", {"name": None}),
    "NUL in name": ("name", {"name": "a\x00b"}),
    "negative priority": ("priority", {"priority": -1}),
    "high priority": ("priority", {"priority": 32_768}),
    "float priority": ("priority", {"priority": 1.0}),
    "bool priority": ("priority", {"priority": True}),
    "negative timeout": ("handler_timeout", {"handler_timeout": -0.1}),
    "NaN timeout": ("handler_timeout", {"handler_timeout": math.nan}),
    "text timeout": ("handler_timeout", {"handler_timeout": "30"}),
    "no tries": ("max_retry_count", {"max_retry_count": 0}),
    "half a try": ("max_retry_count", {"max_retry_count": 1.5}),
    "naive datetime": ("scheduled_at", {"scheduled_at": datetime(2030, 1, 1)}),  # noqa: DTZ001
    "text for a datetime": ("scheduled_at", {"scheduled_at": "2030-01-01"}),
    "both times": ("delay", {"scheduled_at": AWARE, "delay": 1}),
    "negative delay": ("delay", {"delay": -1}),
    "NaN delay": ("delay", {"delay": math.nan}),
    "endless delay": ("delay", {"delay": math.inf}),
    "empty key": ("unique_key", {"unique_key": ""}),
    "long key": ("unique_key", {"unique_key": "k" * 201}),
    "not JSON": ("data", {"data": {"a": [1, {"b": object()}]}}),
    "a set": ("data", {"data": {"a": {1}}}),
    "a tuple": ("data", {"data": {"a": (1,)}}),
    "bytes": ("data", {"data": {"a": b"x"}}),
    "a number as a key": ("data", {"data": {1: "x"}}),
    "NUL": ("data", {"data": {"a": "x\x00"}}),
    "NUL in a key": ("data", {"data": {"x\x00": 1}}),
    "NaN": ("data", {"data": {"a": math.nan}}),
    "infinity": ("data", {"data": {"a": -math.inf}}),
    "lone surrogate": ("data", {"data": {"a": "\ud800"}}),
    "too deep": ("data", {"data": {"a": nested(101)}}),
    "too large": ("data", {"data": {"a": "é" * 600_000}}),
}


async def refused_by_add_job(engine, name="n", data=None, **options):
    await add_job(engine, name, data, **options)


async def refused_by_add_jobs(engine, name="n", data=None, **options):
    await add_jobs(engine, [NewJob("fine"), NewJob(name, data, **options)])


async def refused_by_row(engine, **columns):
    async with AsyncSession(engine) as session, session.begin():
        session.add(JobRow(**{"name": "n", **columns}))


async def refused_by_handler(engine, data=None, **options):
    await Handlers().add("n", nothing).add(engine, data, **options)


def applies(way, arguments) -> bool:
    """A row has no delay, and a handler's jobs have its own name."""
    missing = {refused_by_row: "delay", refused_by_handler: "name"}.get(way)
    return missing not in arguments


@pytest.mark.parametrize("way", [refused_by_add_job, refused_by_add_jobs, refused_by_row, refused_by_handler])
async def test_what_must_not_be_stored_is_refused_before_the_database_is_touched(engine, way):
    found = {}
    cases = {case: bad for case, bad in BAD.items() if applies(way, bad[1])}
    with statements() as seen:
        for case, (_field, arguments) in cases.items():
            try:
                await way(engine, **arguments)
            except InvalidJob as refused:
                found[case] = refused.field
    assert found == {case: field for case, (field, _) in cases.items()}
    # A session may have begun a transaction; nothing is written.
    assert [statement for statement in seen if not statement.startswith("BEGIN")] == []
    assert await count_jobs(engine) == 0


PLACES = [
    ({"user": {"name": "\x00"}}, "$.user.name"),
    ({"list": [0, {"x": math.nan}]}, "$.list[1].x"),
    ({"at": AWARE}, "$.at"),
    ("\udfff", "$"),
]


@pytest.mark.parametrize(("data", "path"), PLACES)
def test_the_refusal_names_the_place_in_the_payload(data, path):
    with pytest.raises(InvalidJob) as refused:
        NewJob("n", data)
    assert (refused.value.field, refused.value.path) == ("data", path)
    assert str(refused.value).startswith(f"data at {path}: ")


async def test_the_limits_themselves_are_allowed(engine):
    size = 1_048_576 - len(json.dumps({"a": ""}))
    job_id = await add_job(
        engine, "n" * 200, {"a": "x" * size}, priority=32_767, max_retry_count=1, unique_key="k" * 200
    )
    row = await row_of(engine, job_id)
    assert (len(row.name), len(row.data["a"]), row.priority) == (200, size, 32_767)
    assert (await row_of(engine, await add_job(engine, "n", nested(100)))).data == nested(100)


async def test_what_was_checked_is_what_is_stored(engine):
    data = {"to": "a@b.c"}
    job = NewJob("n", data)
    data["to"] = math.nan
    (job_id,) = await add_jobs(engine, [job])
    assert (await row_of(engine, job_id)).data == {"to": "a@b.c"}


class Urgency(IntEnum):
    high = 1


async def test_texts_and_numbers_of_any_kind_are_stored_as_they_are(engine):
    name, key, data = 'say "hi" \\ ü\n☃', "'\\\"\t", {"\\": '"', "ü": "\x01"}
    job_id = await add_job(engine, name, data, priority=Urgency.high, unique_key=key)
    row = await row_of(engine, job_id)
    assert (row.name, row.data, row.priority, row.unique_key) == (name, data, 1, key)


async def test_a_refused_job_leaves_the_callers_transaction_alive(engine):
    async with AsyncSession(engine) as session, session.begin():
        kept = await add_job(session, "kept")
        with pytest.raises(InvalidJob):
            await add_job(session, "")
    assert [row.id for row in await rows(engine)] == [kept]


# --- a connection that breaks at COMMIT -------------------------------------------------------------------------------


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_connection_that_breaks_at_commit_is_ambiguous(pg_engine, delivered):
    async with through_proxy(pg_engine) as (proxy, client):
        proxy.down_at(b'"name":"a"', delivered=delivered)  # the statement commits itself
        with pytest.raises(AmbiguousCommit, match="2 job"):
            await add_jobs(client, [NewJob("a"), NewJob("a", unique_key="k")])
    assert proxy.tripped.is_set()
    if delivered:
        await until(lambda: count_jobs(pg_engine))
    assert await count_jobs(pg_engine) == (2 if delivered else 0)


async def test_in_the_callers_transaction_the_commit_is_the_callers(pg_engine):
    async with through_proxy(pg_engine) as (proxy, client):
        proxy.down_at(b"COMMIT", delivered=False)
        with pytest.raises(Exception, match="connection") as broken:
            async with client.begin() as connection:
                await add_job(connection, "a")
        assert not isinstance(broken.value, AmbiguousCommit)
    assert proxy.tripped.is_set()
    assert await count_jobs(pg_engine) == 0


# --- hooks ------------------------------------------------------------------------------------------------------------


class Observer:
    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.enqueue: list[NewJob[Any]] = []
        self.enqueued: list[Enqueued] = []

    def on_enqueue(self, new_job: NewJob[Any]) -> Any:
        self.enqueue.append(new_job)
        return self.answer

    def on_enqueued(self, record: Enqueued) -> None:
        self.enqueued.append(record)


@pytest.fixture
def install():
    with contextlib.ExitStack() as stack:

        def installing(*hooks: object) -> None:
            stack.callback(install_hooks(*hooks))

        yield installing


@pytest.mark.parametrize("way", WAYS)
async def test_hooks_hear_of_each_job_and_give_its_trace_context(engine, install, way):
    observer = Observer({"traceparent": "00-1-2-01"})
    install(observer)
    new = [NewJob("a", {"n": 1}), NewJob("b", unique_key="k"), NewJob("b", unique_key="k")]
    async with reach(engine, way) as db:
        first, second, skipped = await add_jobs(db, new)
    assert skipped is None
    assert observer.enqueue == new
    assert observer.enqueued == [Enqueued(first, new[0]), Enqueued(second, new[1])]
    assert [row.trace_context for row in await rows(engine)] == [{"traceparent": "00-1-2-01"}] * 2


async def test_the_trace_context_reaches_the_workers_hooks(engine, jobs, install):
    install(Observer({"traceparent": "x"}), Observer({"tracestate": "y"}), Observer(), Observer("no mapping"))
    jobs.add("a", nothing)
    await add_job(engine, "a")
    recorder = Recorder()
    await QueueWorker(engine, jobs, hooks=[recorder]).drain()
    assert recorder.started[0].trace_context == {"traceparent": "x", "tracestate": "y"}


async def test_on_enqueued_comes_before_the_callers_commit(engine, install):
    observer = Observer()
    install(observer)
    async with AsyncSession(engine) as session:
        await add_job(session, "a")
        assert len(observer.enqueued) == 1
        await session.rollback()
    assert await count_jobs(engine) == 0


async def test_a_hook_that_fails_is_logged_and_harms_no_job(engine, install, caplog):
    class Broken:
        def on_enqueue(self, new_job):
            raise ValueError("broken before")

        def on_enqueued(self, record):
            raise ValueError("broken after")

    after = Observer({"x": "1"})
    install(Broken(), after)
    with caplog.at_level(logging.ERROR, "queue_kit.hooks"):
        job_id = await add_job(engine, "a")
    assert (await row_of(engine, job_id)).trace_context == {"x": "1"}
    assert len(after.enqueued) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "hook Broken.on_enqueue failed",
        "hook Broken.on_enqueued failed",
    ]


async def test_orm_and_plain_sql_call_no_hook(engine, install):
    observer = Observer({"x": "1"})
    install(observer)
    async with AsyncSession(engine) as session, session.begin():
        await by_orm(session, None)
        await by_plain_sql(session, None)
    assert (observer.enqueue, observer.enqueued) == ([], [])
    assert [row.trace_context for row in await rows(engine)] == [None, None]


async def test_an_uninstalled_hook_hears_nothing(engine):
    gone, stays = Observer(), Observer()
    uninstall = install_hooks(gone)
    uninstall_other = install_hooks(stays)
    uninstall()
    await add_job(engine, "a")
    uninstall_other()
    assert (len(gone.enqueue), len(gone.enqueued)) == (0, 0)
    assert (len(stays.enqueue), len(stays.enqueued)) == (1, 1)
