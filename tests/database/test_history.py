"""What runs came to, minute by minute: counted by workers, added up in the database, read back as points of a chart."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    Discard,
    Handlers,
    QueueWorker,
    Snooze,
    _history,
    add_job,
    add_jobs,
    throughput,
    throughput_by_name,
)
from queue_kit._dialect.columns import as_utc_text
from queue_kit._history import Counts
from queue_kit._statements import history
from queue_kit._statements.vocabulary import as_batch
from queue_kit.job import NewJob
from queue_kit.models import HistoryRow
from tests.database.clock import WAYS, database_now, reach
from tests.database.running import nothing, raw, worker_rows
from tests.support import Recorder, until

VERDICTS = ("completed", "retried", "failed", "snoozed", "cancelled", "released", "lost")


async def stored(engine: AsyncEngine) -> list[HistoryRow]:
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(HistoryRow).order_by(HistoryRow.minute, HistoryRow.name)))


async def note(
    engine: AsyncEngine, *, minutes_ago: int, now: datetime | None = None, name: str = "a", **columns: Any
) -> None:
    """Write a row of history, as of a whole minute ago; rows whose minutes are compared have one `now`."""
    minute = (now or await database_now(engine)).replace(second=0, microsecond=0) - timedelta(minutes=minutes_ago)
    async with AsyncSession(engine) as session:
        session.add(HistoryRow(minute=minute, name=name, **columns))
        await session.commit()


# --- what workers write -----------------------------------------------------------------------------------------------


async def test_a_stopped_worker_has_written_what_its_runs_came_to(engine):
    jobs = Handlers()
    jobs.add("works", nothing)

    @jobs.handler("ends", max_retry_count=2, retry_delay=600)
    async def ends(event, session, job):
        await asyncio.sleep(0.02)
        raise {"snooze": Snooze(600), "discard": Discard("no"), "error": ValueError("again")}[job.data["how"]]

    await add_jobs(engine, [NewJob("works", scheduled_at=datetime(2020, 1, 1, tzinfo=UTC)), NewJob("works")])
    await add_jobs(engine, [NewJob("ends", {"how": how}) for how in ("snooze", "discard", "error")])
    before = await database_now(engine)
    await QueueWorker(engine, jobs).drain()
    rows = await stored(engine)
    minutes = {row.minute for row in rows}
    after = await database_now(engine)
    assert all(before - timedelta(minutes=1) < minute <= after for minute in minutes)
    assert all((minute.second, minute.microsecond) == (0, 0) for minute in minutes)
    counts = {
        name: {verdict: sum(getattr(row, verdict) for row in rows if row.name == name) for verdict in VERDICTS}
        for name in ("works", "ends")
    }
    assert counts["works"] == dict.fromkeys(VERDICTS, 0) | {"completed": 2}
    assert counts["ends"] == dict.fromkeys(VERDICTS, 0) | {"snoozed": 1, "failed": 1, "retried": 1}
    assert sum(row.run_seconds for row in rows if row.name == "ends") >= 0.05
    assert max(row.longest_run for row in rows if row.name == "ends") >= 0.02
    waited = (before - datetime(2020, 1, 1, tzinfo=UTC)).total_seconds()
    assert max(row.longest_wait for row in rows if row.name == "works") == pytest.approx(waited, abs=60)
    assert max(row.longest_wait for row in rows if row.name == "ends") < 60


async def test_many_workers_add_up_in_one_row_a_minute_and_name(engine):
    hook = Recorder()
    workers = [QueueWorker(engine, {"a": nothing, "b": nothing}, listen=False, hooks=[hook]) for _ in range(3)]
    await add_jobs(engine, [NewJob(name) for name in "ab" for _ in range(30)])
    async with workers[0], workers[1], workers[2]:
        await until(lambda: len(hook.settled) == 60)
        await asyncio.gather(*(worker.stop() for worker in workers))
    rows = await stored(engine)
    assert {name: sum(row.completed for row in rows if row.name == name) for name in "ab"} == {"a": 30, "b": 30}
    assert len(rows) <= 4  # two names, and the minute may have changed


async def test_a_worker_writes_each_minute_while_it_goes_on(engine, monkeypatch):
    monkeypatch.setattr(_history, "MINUTE", 0.25)
    monkeypatch.setattr(_history, "SPREAD", 0.01)
    async with QueueWorker(engine, {"a": nothing}, listen=False) as worker:
        for count in (1, 2):
            await add_job(engine, "a")
            await until(lambda count=count: _completed(engine, count))
        assert worker.healthy
    assert len(await stored(engine)) == 2


async def _completed(engine: AsyncEngine, count: int) -> bool:
    return sum(row.completed for row in await stored(engine)) == count


async def test_a_worker_that_stops_just_after_it_put_a_minute_aside_writes_both_parts_of_it(
    engine, monkeypatch, caplog
):
    monkeypatch.setattr(_history.History, "_now", lambda _: 1_790_000_000.0)
    async with QueueWorker(engine, {"a": nothing}, listen=False) as worker:
        history = worker._crew._history
        await add_job(engine, "a")
        await until(lambda: history._counts)
        history._end(history._minute())
        await add_job(engine, "a")
        await until(lambda: history._counts)
    assert [row.completed for row in await stored(engine)] == [2]
    assert "not written" not in caplog.text


async def test_a_worker_that_stops_as_a_minute_begins_counts_for_that_minute(engine, monkeypatch):
    begins = datetime(2026, 9, 21, 12, 30, tzinfo=UTC)
    monkeypatch.setattr(_history.History, "_now", lambda _: begins.timestamp() + 0.5)
    await add_job(engine, "a")
    await QueueWorker(engine, {"a": nothing}).drain()
    assert [(row.minute, row.completed) for row in await stored(engine)] == [(begins, 1)]


async def test_workers_forget_what_is_older_than_fourteen_days(engine, monkeypatch):
    monkeypatch.setattr(_history, "MINUTE", 0.02)  # each worker prunes once in sixty
    monkeypatch.setattr(_history, "SPREAD", 0.0)
    for days in (13, 15, 15.2, 17):
        await note(engine, minutes_ago=int(days * 1440), completed=1)

    async def left() -> bool:
        return len(await stored(engine)) == 1

    async with QueueWorker(engine, {"a": nothing}, listen=False):
        await until(left)
    (row,) = await stored(engine)
    assert await database_now(engine) - row.minute < timedelta(days=14)


async def test_a_worker_that_may_not_write_history_works_on_and_says_so_once(engine, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "queue_kit")
    monkeypatch.setattr(_history, "MINUTE", 0.1)
    monkeypatch.setattr(_history, "SPREAD", 0.0)
    await raw(engine, "DROP TABLE queue_kit_history")
    hook = Recorder()
    async with QueueWorker(engine, {"a": nothing}, hooks=[hook], listen=False) as worker:
        await add_job(engine, "a")
        await until(lambda: "is not written" in caplog.text)
        await add_job(engine, "a")  # what it came to is refused as well, at the latest when the worker stops
        await until(lambda: len(hook.settled) == 2)
        assert worker.healthy
        assert "database_down" not in hook.states
    assert await worker_rows(engine) == []
    (message,) = [record.message for record in caplog.records]
    assert message.startswith("the history of throughput is not written: ")


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_an_hour_is_sixty_minutes_with_zeros_where_nothing_ran(engine, way):
    now = await database_now(engine)
    of_a = {"completed": 6, "failed": 2, "run_seconds": 4.0, "longest_run": 2.5, "wait_seconds": 16.0}
    of_b = {"completed": 2, "run_seconds": 1.0, "longest_run": 3.5, "longest_wait": 9.0}
    await note(engine, minutes_ago=2, now=now, **of_a)
    await note(engine, minutes_ago=2, now=now, name="b", **of_b)
    await note(engine, minutes_ago=100, completed=1_000)
    await note(engine, minutes_ago=-5, completed=1_000)
    async with reach(engine, way) as db:
        points = await throughput(db)
        points_of_b = await throughput(db, name="b")
        unknown = await throughput(db, name="nobody")
    assert len(points) == len(points_of_b) == len(unknown) == 60
    assert {later.at - earlier.at for earlier, later in pairwise(points)} == {timedelta(minutes=1)}
    ran = [point for point in points if point.runs]
    (point,) = ran
    assert (point.completed, point.failed, point.runs, point.seconds) == (8, 2, 10, 60.0)
    assert (point.mean_run, point.longest_run, point.mean_wait, point.longest_wait) == (0.5, 3.5, 1.6, 9.0)
    assert point.per_second == pytest.approx(8 / 60)
    assert sum(point.completed for point in points_of_b) == 2
    assert sum(point.runs for point in unknown) == 0
    assert {point.mean_run for point in unknown} == {None}
    now = await database_now(engine)
    end = points[-1].at + timedelta(seconds=points[-1].seconds)
    assert timedelta(0) < now - end < timedelta(seconds=75)


@pytest.mark.parametrize(
    ("last", "count", "seconds"),
    [
        (60, 1, 60),
        (timedelta(hours=2), 120, 60),
        (timedelta(hours=6), 72, 300),
        (timedelta(days=1), 96, 900),
        (timedelta(days=14), 112, 10_800),
    ],
)
async def test_points_become_coarser_and_lose_nothing(engine, last, count, seconds):
    span = last if isinstance(last, timedelta) else timedelta(seconds=last)
    minutes = int(span.total_seconds() // 60)
    for minutes_ago in {2, max(minutes // 2, 2), max(minutes - 2, 2)}:
        await note(engine, minutes_ago=minutes_ago, completed=1)
    points = await throughput(engine, last=last)
    assert [point.seconds for point in points] == [seconds] * count
    if minutes > 1:
        assert sum(point.completed for point in points) == len({2, max(minutes // 2, 2), minutes - 2})


@pytest.mark.parametrize("way", WAYS)
async def test_each_name_has_a_point_of_its_own(engine, way):
    now = await database_now(engine)
    await note(engine, minutes_ago=2, now=now, completed=6, run_seconds=3.0, longest_run=2.5)
    await note(engine, minutes_ago=3, now=now, completed=2, failed=2, run_seconds=2.0, longest_run=1.5)
    await note(engine, minutes_ago=3, now=now, name="b", failed=1)
    await note(engine, minutes_ago=20, now=now, name="c", completed=1)
    async with reach(engine, way) as db:
        points = await throughput_by_name(db, last=600)
    assert list(points) == ["a", "b"]
    assert (points["a"].completed, points["a"].failed, points["a"].runs, points["b"].failed) == (8, 2, 10, 1)
    assert (points["a"].seconds, points["a"].mean_run, points["a"].longest_run) == (600.0, 0.5, 2.5)
    assert points["a"].at == points["b"].at
    with pytest.raises(ValueError, match="last is from 60 seconds"):
        await throughput_by_name(engine, last=0)


@pytest.mark.parametrize("last", [0, 59, -1, float("nan"), float("inf"), 15 * 86_400, True, "1h", None])
async def test_other_times_are_refused(engine, last):
    with pytest.raises(ValueError, match="last is from 60 seconds to 14 days"):
        await throughput(engine, last=last)


@pytest.mark.parametrize("name", ["", "a\x00", "\udc80", "n" * 10_000])
async def test_a_name_that_no_job_can_have_has_run_nothing(engine, name):
    points = await throughput(engine, name=name)
    assert (len(points), sum(point.runs for point in points)) == (60, 0)


async def test_what_is_no_name_and_no_database_is_refused(engine):
    with pytest.raises(TypeError, match="name must be text"):
        await throughput(engine, name=7)
    with pytest.raises(TypeError, match="AsyncSession, AsyncConnection or AsyncEngine"):
        await throughput("sqlite:///x")


async def test_its_commit_does_not_wait_for_the_disk(pg_engine: AsyncEngine) -> None:
    row = {"minute": as_utc_text(datetime(2026, 5, 1, 12, tzinfo=UTC)), "name": "work", **Counts().as_row()}
    async with pg_engine.connect() as connection:
        await connection.execute(text("SET LOCAL synchronous_commit = on"))
        await connection.execute(history.add_history(), {"batch": as_batch([row])})
        assert await connection.scalar(text("SHOW synchronous_commit")) == "off"
