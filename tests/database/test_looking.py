"""Looking at jobs: one, a page of them, the queue as a whole, and `JobRow.state` as SQL and as Python."""

from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    Insights,
    JobRow,
    JobState,
    NameInsights,
    QueueWorker,
    add_job,
    cancel_jobs,
    failure_groups,
    get_job,
    list_cron_jobs,
    list_jobs,
    list_workers,
    operate,
    queue_insights,
    sqlite_engine,
    throughput,
    throughput_by_name,
)
from queue_kit.models import WORKERS
from tests.database.clock import WAYS, database_now, reach
from tests.database.running import Gate, in_every_state, job_in
from tests.support import change, move, until

# --- one and many -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_job_is_got_with_all_its_columns(engine, way):
    job_id = await add_job(engine, "a", {"x": [1]}, unique_key="k", priority=3)
    async with reach(engine, way) as db:
        row = await get_job(db, job_id)
    assert isinstance(row, JobRow)
    assert (row.id, row.name, row.data, row.unique_key, row.priority) == (job_id, "a", {"x": [1]}, "k", 3)
    assert (row.state, row.is_complete, row.errors) == (JobState.ready, False, None)


@pytest.mark.parametrize("way", WAYS)
async def test_lists_are_filtered_by_state_and_name(engine, way):
    ids = await in_every_state(engine)
    other = await job_in(engine, "failed", name="A")
    expected = {state: [ids[state]] for state in JobState}
    expected["ready"] = [ids["lapsed"], ids["ready"]]
    async with reach(engine, way) as db:
        for state in JobState:
            assert [row.id for row in await list_jobs(db, state=state, name="a")] == expected[state], state
        assert [row.id for row in await list_jobs(db, state="failed")] == [other, ids["failed"]]
        assert [row.id for row in await list_jobs(db, name="A")] == [other]
        assert await list_jobs(db, name="a%") == []


async def test_a_name_that_no_job_may_have_finds_nothing(engine):
    await add_job(engine, "a")
    for name in ("", "a\x00", "\udc80", "x" * 201):
        async with AsyncSession(engine) as session:
            assert await list_jobs(session, name=name) == []
            assert len(await list_jobs(session)) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_lists_come_newest_first_in_pages(engine, way):
    ids = [await add_job(engine, "a") for _ in range(7)]
    async with reach(engine, way) as db:
        assert [row.id for row in await list_jobs(db)] == ids[::-1]
        after = None
        for page in (ids[:3:-1], ids[3:0:-1], ids[:1], []):
            assert [row.id for row in await list_jobs(db, name="a", limit=3, after=after)] == page
            after = page[-1] if page else None
        for beyond in (2**62, 2**63, 2**70):
            assert len(await list_jobs(db, limit=1_000, after=beyond)) == 7
        for below in (0, -1, -(2**70)):
            assert await list_jobs(db, after=below) == []


@pytest.mark.parametrize(
    ("argument", "wrong", "error"),
    [
        ("limit", [0, -1, 1_001, 1.5, "5", None, True], ValueError),
        ("state", ["done", "", 3, "READY"], ValueError),
        ("after", ["5", 1.5, True], TypeError),
        ("name", [5, b"a", True], TypeError),
    ],
)
async def test_a_list_cannot_be_asked_for_just_anything(engine, argument, wrong, error):
    await add_job(engine, "a")
    for value in wrong:
        with pytest.raises(error):
            await list_jobs(engine, **{argument: value})


# --- states -----------------------------------------------------------------------------------------------------------


async def test_the_state_is_the_same_in_sql_and_on_an_instance(engine):
    ids = await in_every_state(engine)
    later = await job_in(engine, "ready")
    await change(engine, later, scheduled_at=await database_now(engine) + timedelta(hours=1), status=1)
    await change(engine, ids["completed"], lease_until=await database_now(engine) + timedelta(hours=1))
    expected = {**{ids[state]: state for state in JobState}, ids["lapsed"]: "ready"}
    query = select(JobRow, JobRow.state, JobRow.is_complete).where(JobRow.id != later)
    async with AsyncSession(engine) as session:
        found = (await session.execute(query)).all()
        assert {row.id: state for row, state, _ in found} == expected
        assert {row.id: row.state for row, _, _ in found} == expected
        for row, state, complete in found:
            assert isinstance(row.state, JobState)
            assert bool(complete) is row.is_complete is JobState(state).is_complete is (state in FINAL)
        for state in JobState:
            same = await session.scalars(select(JobRow.id).where(JobRow.state == state))
            assert {job_id for job_id in same if job_id != later} == {i for i, of in expected.items() if of == state}
        complete = await session.scalars(select(JobRow.id).where(JobRow.is_complete))
        assert set(complete) == {ids[state] for state in FINAL}
        live = await session.scalars(select(JobRow.id).where(~JobRow.is_complete))
        assert set(live) == {ids["scheduled"], ids["ready"], ids["lapsed"], ids["running"], later}


FINAL = ("completed", "failed", "cancelled")


# --- insights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_an_empty_queue_has_empty_insights(engine, way):
    for state in ("completed", "cancelled"):
        await job_in(engine, state)
    async with reach(engine, way) as db:
        found = await queue_insights(db)
    assert found == Insights()
    assert (found.pending, found.scheduled, found.running, found.failed) == (0, 0, 0, 0)
    assert (found.oldest_due_seconds, found.by_name, found.unhandled_names) == (None, {}, ())


@pytest.mark.parametrize("way", WAYS)
async def test_insights_count_what_waits_runs_and_has_failed_in_total_and_by_name(engine, way):
    await in_every_state(engine)
    for state in ("ready", "scheduled", "scheduled", "running", "failed", "failed"):
        await job_in(engine, state, name="b")
    due = await job_in(engine, "scheduled", name="c")  # nobody has promoted it yet
    await move(engine, due, scheduled_at=-1_100)
    await change(engine, due, status=0)
    early = await job_in(engine, "ready", name="d")  # nor has anybody looked at this one
    await change(engine, early, scheduled_at=await database_now(engine) + timedelta(hours=1))
    await change(engine, early, status=1)
    async with reach(engine, way) as db:
        found = await queue_insights(db)
    assert (found.pending, found.scheduled, found.running, found.failed) == (4, 4, 2, 3)
    assert list(found.by_name) == ["a", "b", "c", "d"]
    assert {name: counts(each) for name, each in found.by_name.items()} == {
        "a": (2, 1, 1, 1),
        "b": (1, 2, 1, 2),
        "c": (1, 0, 0, 0),
        "d": (0, 1, 0, 0),
    }


def counts(insights: NameInsights) -> tuple[int, int, int, int]:
    return insights.pending, insights.scheduled, insights.running, insights.failed


async def test_the_oldest_due_job_is_the_one_that_waits_longest_by_the_databases_clock(engine):
    first = await add_job(engine, "a")
    due = {await add_job(engine, "a"): 500, await add_job(engine, "a"): 300, await add_job(engine, "b"): 100}
    for job_id, seconds in due.items():
        await move(engine, job_id, scheduled_at=-seconds)
    for state in ("running", "failed", "scheduled", "completed"):  # these wait no longer, or not yet
        job_id = await job_in(engine, state, name="c")
        await move(engine, job_id, scheduled_at=-90_000 if state != "scheduled" else 0)
    found = await queue_insights(engine)
    assert 500 <= found.oldest_due_seconds < 560
    assert found.by_name["a"].oldest_due_seconds == found.oldest_due_seconds
    assert 100 <= found.by_name["b"].oldest_due_seconds < 160
    assert found.by_name["c"].oldest_due_seconds is None
    await change(engine, next(iter(due)), status=2)
    assert 300 <= (await queue_insights(engine)).oldest_due_seconds < 360
    assert (await get_job(engine, first)).state is JobState.ready


async def test_the_oldest_due_age_is_never_negative(engine):
    await add_job(engine, "a")
    assert (await queue_insights(engine)).oldest_due_seconds >= 0


async def test_waiting_names_that_no_live_worker_runs_are_unhandled(engine):
    for name, state in [("z", "ready"), ("known", "ready"), ("later", "scheduled"), ("excluded", "ready")]:
        await job_in(engine, state, name=name)
    for state in ("failed", "completed", "cancelled"):
        await job_in(engine, state, name="closed")
    gate = Gate()
    handlers = dict.fromkeys(("known", "excluded"), gate)
    async with QueueWorker(engine, handlers, excluded_names=["excluded"]):
        await until(lambda: gate.running)
        assert (await queue_insights(engine)).unhandled_names == ("excluded", "later", "z")
        gate.open.set()
    await add_job(engine, "known")
    assert (await queue_insights(engine)).unhandled_names == ("excluded", "known", "later", "z")


async def test_a_worker_is_alive_while_it_was_seen_of_late(engine):
    for seen in (0, 30, 60, 90_000):
        await greet(engine, [f"{seen} s", "a"], seen=seen)
        await add_job(engine, f"{seen} s")
    await add_job(engine, "a")
    assert (await queue_insights(engine)).unhandled_names == ("60 s", "90000 s")


async def greet(engine: AsyncEngine, names: list[str], *, seen: float) -> None:
    """The row of a worker that was last seen so many seconds ago."""
    at = await database_now(engine) - timedelta(seconds=seen)
    row = {"id": uuid4(), "label": "", "host": "", "pid": 1, "names": names, "seen_at": at}
    async with engine.begin() as connection:
        await connection.execute(insert(WORKERS).values(**row))


@pytest.mark.parametrize("way", WAYS)
async def test_lists_are_filtered_by_unique_key_and_by_cron_entry(engine, way):
    done = await job_in(engine, "completed", unique_key="k", cron_name="tick")
    live = await add_job(engine, "b", unique_key="k")
    await job_in(engine, "completed", unique_key="K", cron_name="tock")
    async with reach(engine, way) as db:
        assert [row.id for row in await list_jobs(db, unique_key="k")] == [live, done]
        assert [row.id for row in await list_jobs(db, unique_key="k", limit=1, after=live)] == [done]
        assert [row.id for row in await list_jobs(db, cron_name="tick")] == [done]
        assert [row.id for row in await list_jobs(db, cron_name="tick", state=JobState.failed)] == []
        for nobody in ("", "x" * 300, "\x00"):
            assert await list_jobs(db, unique_key=nobody) == await list_jobs(db, cron_name=nobody) == []
    for filters in ({"unique_key": 7}, {"cron_name": b"tick"}):
        with pytest.raises(TypeError, match=f"{next(iter(filters))} must be text"):
            await list_jobs(engine, **filters)


async def test_lists_are_bounded_by_times_of_creation(engine, monkeypatch):
    monkeypatch.setattr(operate, "OUT_OF_ORDER", 1)
    ids = [await add_job(engine, "a") for _ in range(40)]
    now = await database_now(engine)
    at = {}
    for number, job_id in enumerate(ids):
        at[job_id] = now - timedelta(minutes=40 - number)
        await change(engine, job_id, created_at=at[job_id])
    async with engine.begin() as connection:  # gaps, also where a look may land
        await connection.execute(delete(JobRow.__table__).where(JobRow.id.in_(ids[10:17]) | (JobRow.id == ids[20])))
    kept = [job_id for job_id in reversed(ids) if job_id not in {*ids[10:17], ids[20]}]
    times = [None, *(at[ids[number]] + timedelta(seconds=by) for number in (0, 5, 12, 20, 39) for by in (-1, 0, 1))]
    async with engine.connect() as db:
        for after in times:
            for before in times:
                found = await list_jobs(db, created_after=after, created_before=before)
                assert [row.id for row in found] == [
                    job_id
                    for job_id in kept
                    if (after is None or at[job_id] >= after) and (before is None or at[job_id] < before)
                ]
    assert await list_jobs(engine, name="nobody", created_after=now) == []


async def test_times_of_creation_have_a_zone(engine):
    assert await list_jobs(engine, created_after=await database_now(engine)) == []
    for argument in ("created_after", "created_before"):
        with pytest.raises(ValueError, match=f"{argument} has no time zone"):
            await list_jobs(engine, **{argument: datetime(2026, 1, 1)})  # noqa: DTZ001
        with pytest.raises(TypeError, match=f"{argument} must be a datetime"):
            await list_jobs(engine, **{argument: "2026-01-01"})


async def test_looking_waits_for_no_writer_of_sqlite(sqlite_path):
    engine = sqlite_engine(sqlite_path, busy_timeout=0.1)
    job_id = await add_job(engine, "a")
    looks = (list_jobs, queue_insights, failure_groups, list_workers, list_cron_jobs, throughput, throughput_by_name)
    async with engine.begin() as writer:  # an immediate transaction, as all of this engine's are
        await add_job(writer, "b")
        for look in looks:
            await look(engine)
        assert await get_job(engine, job_id) is not None
        assert (await cancel_jobs(engine, name="a", dry_run=True)).changed == 1
        with pytest.raises(DBAPIError, match="locked"):
            await cancel_jobs(engine, name="a")
    await engine.dispose()
