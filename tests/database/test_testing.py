"""`queue_kit.testing` inside of a transaction that is rolled back: what a drain does is what a worker would do."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from queue_kit import (
    ConfigurationError,
    CronJob,
    Discard,
    Event,
    Handlers,
    InvalidJob,
    Job,
    JobRow,
    JobState,
    QueueWorker,
    SchemaMismatch,
    Snooze,
    add_job,
    cancel_job,
    get_job,
    list_jobs,
    register_cron_jobs,
    sqlite_engine,
)
from queue_kit.models import CronRow
from queue_kit.testing import assert_enqueued, drain, enqueued, move_clock, rolled_back
from tests.support import ADD_EFFECT, Recorder, count_jobs, effects, make_effects


@dataclass
class Email:
    to: str


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    await make_effects(engine)
    async with rolled_back(engine) as connection:
        yield connection
    assert await count_jobs(engine) == 0
    assert await effects(engine) == []


@pytest.fixture
async def session(connection: AsyncConnection) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(connection, expire_on_commit=False) as session:
        yield session


async def written(session: AsyncSession) -> list[int]:
    """What handlers wrote."""
    return list(await session.scalars(text("SELECT job_id FROM effect ORDER BY job_id")))


async def having(connection: AsyncConnection, name: str, **options: Any) -> AsyncConnection:
    """The connection, with a job."""
    await add_job(connection, name, **options)
    return connection


def verdicts(counts: dict[str, int]) -> dict[str, int]:
    return {verdict: count for verdict, count in counts.items() if count}


def only(name: str, function: Any, **options: Any) -> Handlers:
    jobs = Handlers()
    jobs.add(name, function, **options)
    return jobs


# --- as a worker does -------------------------------------------------------------------------------------------------

everything = Handlers()


@everything.handler("returns")
async def returns(event: Event, session: AsyncSession, job: Job) -> None:
    await session.execute(ADD_EFFECT, {"job_id": job.id})


@everything.handler("unused")
async def unused(event: Event, session: AsyncSession, job: Job) -> None:
    pass


@everything.handler("adds")
async def adds(event: Event, session: AsyncSession, job: Job) -> None:
    await add_job(session, "returns")
    session.add(JobRow(name="nobody"))


@everything.handler("raises")
async def raises(event: Event, session: AsyncSession, job: Job) -> None:
    await session.execute(ADD_EFFECT, {"job_id": job.id})
    await add_job(session, "returns")
    raise ValueError("no")


@everything.handler("raises.at.once", max_retry_count=3, retry_delay=0)
async def raises_at_once(event: Event, session: AsyncSession, job: Job) -> None:
    raise ValueError("no")


@everything.handler("checkpoints")
async def checkpoints(event: Event, session: AsyncSession, job: Job) -> None:
    await session.execute(ADD_EFFECT, {"job_id": job.id})
    await session.commit()
    await session.execute(ADD_EFFECT, {"job_id": -job.id})
    raise Discard("enough")


@everything.handler("snoozes")
async def snoozes(event: Event, session: AsyncSession, job: Job) -> None:
    await session.execute(ADD_EFFECT, {"job_id": job.id})
    raise Snooze(60)


@everything.handler("late", timeout=1.0)
async def late(event: Event, session: AsyncSession, job: Job) -> None:
    await session.execute(ADD_EFFECT, {"job_id": job.id})
    await asyncio.sleep(60)


@everything.handler("breaks.sql", max_retry_count=1)
async def breaks_sql(event: Event, session: AsyncSession, job: Job) -> None:
    await session.execute(text("INSERT INTO nowhere VALUES (1)"))


@everything.handler("again")
async def again(event: Event, session: AsyncSession, job: Job) -> None:
    if job.data["left"]:
        await add_job(session, "again", {"left": job.data["left"] - 1}, unique_key="one at a time")


@everything.handler("typed")
async def typed(event: Event, session: AsyncSession, job: Job[Email]) -> None:
    assert job.data == Email("a@b.c")


async def fill(session: AsyncSession) -> None:
    """A job of each kind, in an order of their own."""
    for priority, name in enumerate(["late", *(name for name in everything if name not in ("late", "again", "typed"))]):
        await add_job(session, name, priority=priority)
    await add_job(session, "again", {"left": 2}, unique_key="one at a time")
    await add_job(session, "typed", {"to": "a@b.c"})
    await add_job(session, "typed", {"from": "a@b.c"})
    await add_job(session, "returns", delay=60)
    await cancel_job(session, await add_job(session, "returns"))
    session.add(JobRow(name="returns", priority=9))


async def seen(session: AsyncSession) -> tuple[list[Any], list[int]]:
    """All there is to know of the jobs afterwards, without what differs from one run to the next."""
    rows = await session.scalars(select(JobRow).order_by(JobRow.id), execution_options={"populate_existing": True})
    jobs = [
        (
            (row.id, row.name, row.state, row.retry_count, row.lost, row.claim_no, row.unique_key),
            row.worker_id is None,
            [(error.get("class"), error.get("message"), error["try"]) for error in row.errors or ()],
        )
        for row in rows
    ]
    return jobs, await written(session)


async def test_drain_does_what_a_worker_does(engine: AsyncEngine) -> None:
    await make_effects(engine)
    async with rolled_back(engine) as connection, AsyncSession(connection) as session:
        await fill(session)
        counts = await drain(session, everything, retry_delay=60)  # none is due again, however long it takes
        drained = await seen(session)
    async with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # a sequence goes on after a rollback
            await connection.execute(text("ALTER TABLE queue_kit_job ALTER COLUMN id RESTART WITH 1"))
    async with AsyncSession(engine) as session:
        await fill(session)
        await session.commit()
    assert await QueueWorker(engine, everything, prefetch=0, retry_delay=60).drain() == counts
    async with AsyncSession(engine) as session:
        assert await seen(session) == drained
    assert verdicts(counts) == {"completed": 9, "retried": 4, "failed": 4, "snoozed": 1}


async def test_handlers_write_in_the_callers_transaction_or_not_at_all(session: AsyncSession) -> None:
    ok, bad, kept = [await add_job(session, name) for name in ("returns", "raises", "checkpoints")]

    counts = await drain(session, everything, retry_delay=60)
    assert verdicts(counts) == {"completed": 1, "retried": 1, "failed": 1}

    assert await written(session) == [ok, kept]
    (retry,) = await enqueued(session)
    assert (retry.id, retry.state, retry.retry_count) == (bad, JobState.scheduled, 1)


async def test_session_of_the_test_goes_on_after_a_drain(session: AsyncSession) -> None:
    first = JobRow(name="returns")
    session.add(first)  # not flushed
    await drain(session, everything)
    await session.refresh(first)
    assert first.state == JobState.completed
    await session.commit()
    await add_job(session, "returns")
    await session.rollback()
    assert await enqueued(session) == []
    assert await written(session) == [first.id]


async def test_drain_takes_a_connection(connection: AsyncConnection) -> None:
    await add_job(connection, "returns")
    assert verdicts(await drain(connection, everything)) == {"completed": 1}
    assert verdicts(await drain(connection, everything)) == {}


async def test_drain_works_in_a_plain_session_too(engine: AsyncEngine) -> None:
    await make_effects(engine)
    async with AsyncSession(engine) as session:
        await add_job(session, "returns")
        assert verdicts(await drain(session, everything)) == {"completed": 1}
        await session.rollback()
    assert await count_jobs(engine) == 0


async def test_names_without_a_handler_are_left_and_named(
    session: AsyncSession, caplog: pytest.LogCaptureFixture
) -> None:
    await add_job(session, "later", delay=60)
    assert verdicts(await drain(session, everything)) == {}
    assert caplog.messages == []
    for name in ("other", "another", "other"):
        await add_job(session, name)
    assert verdicts(await drain(session, everything)) == {}
    said = "drain() leaves due jobs of names that it was given no handler for: 'another', 'other'"
    assert caplog.messages == [said]
    assert len(await enqueued(session, "other")) == 2
    await move_clock(session, 60)
    await drain(session, everything)
    assert "'another', 'later', 'other'" in caplog.messages[-1]


async def test_a_job_that_adds_itself_for_ever_ends_the_drain(session: AsyncSession) -> None:
    async def loop(event: Event, session: AsyncSession, job: Job) -> None:
        await add_job(session, "loop")

    await add_job(session, "loop")
    with pytest.raises(AssertionError, match=r"20 jobs have run, 20 of them 'loop', and 'loop' is due"):
        await drain(session, only("loop", loop), max_runs=20)
    assert len([job for job in await list_jobs(session) if job.state == JobState.completed]) == 20


async def test_a_drain_changes_no_setting_of_the_transaction(pg_engine: AsyncEngine) -> None:
    async def settings(connection: AsyncConnection) -> list[Any]:
        names = ("statement_timeout", "lock_timeout", "transaction_isolation")
        return [await connection.scalar(text(f"SHOW {name}")) for name in names]

    await make_effects(pg_engine)
    async with rolled_back(pg_engine) as connection:
        before = await settings(connection)
        await add_job(connection, "checkpoints", handler_timeout=5)
        await add_job(connection, "returns", handler_timeout=5)
        assert verdicts(await drain(connection, everything)) == {"completed": 1, "failed": 1}
        assert await settings(connection) == before


async def test_hooks_hear_a_drain(session: AsyncSession) -> None:
    hook = Recorder()
    await add_job(session, "returns")
    await add_job(session, "raises")
    await drain(session, everything, retry_delay=60, hooks=[hook])
    assert hook.verdicts == ["completed", "retried"]
    assert [record.job.name for record in hook.started] == ["returns", "raises"]


async def test_limits_are_those_of_a_worker(session: AsyncSession) -> None:
    await add_job(session, "raises")
    counts = await drain(session, everything, max_retry_count=3, retry_delay=0)
    assert verdicts(counts) == {"retried": 2, "failed": 1}

    async def sleeps(event: Event, session: AsyncSession, job: Job) -> None:
        await asyncio.sleep(60)

    job_id = await add_job(session, "sleeps", max_retry_count=1)
    assert verdicts(await drain(session, {"sleeps": sleeps}, handler_timeout=0.01)) == {"failed": 1}
    job = await get_job(session, job_id)
    assert job is not None
    assert job.errors is not None
    assert job.errors[0]["class"] == "DeadlineExceeded"


class MySession(AsyncSession):
    """An application's own kind."""


async def test_sessions_are_made_as_the_worker_makes_them(session: AsyncSession, engine: AsyncEngine) -> None:
    kinds = []

    async def handler(event: Event, session: AsyncSession, job: Job) -> None:
        kinds.append(type(session))
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        await add_job(session, "again", unique_key="mine")

    key = await add_job(session, "again", unique_key="mine")
    factory = async_sessionmaker(engine, class_=MySession, expire_on_commit=False)
    with pytest.raises(AssertionError, match="3 jobs have run"):
        await drain(session, {"again": handler}, session_factory=factory, max_runs=3)
    assert kinds == [MySession] * 3
    assert await written(session) == [key, key + 1, key + 2]


# --- what ends a drain ------------------------------------------------------------------------------------------------


async def test_a_handler_that_commits_beneath_its_session_stores_nothing(engine: AsyncEngine) -> None:
    async def commits(event: Event, session: AsyncSession, job: Job) -> None:
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        await (await session.connection()).commit()

    await make_effects(engine)
    with pytest.raises(AssertionError, match="'commits' has ended the transaction"):
        async with rolled_back(engine) as connection:
            await drain(await having(connection, "commits"), {"commits": commits})
    assert await effects(engine) == []
    assert await count_jobs(engine) == 0


async def test_a_handler_that_refuses_to_end_fails_the_test(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()

    async def refuses(event: Event, session: AsyncSession, job: Job) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    monkeypatch.setattr("queue_kit.testing._drain.CANCEL_GRACE", 0.05)
    async with rolled_back(engine) as connection:
        await add_job(connection, "refuses", handler_timeout=0.01)
        with pytest.raises(AssertionError, match="'refuses' did not end"):
            await drain(connection, {"refuses": refuses})
        release.set()


async def test_a_deadline_in_a_statement_ends_the_drain_at_once(pg_engine: AsyncEngine) -> None:
    async def waits(event: Event, session: AsyncSession, job: Job) -> None:
        await session.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(AssertionError, match="'waits' has ended the transaction"):
        async with rolled_back(pg_engine) as connection:
            await drain(await having(connection, "waits", handler_timeout=0.05), {"waits": waits})
    assert await count_jobs(pg_engine) == 0


async def test_sqlite_ends_a_query_at_the_deadline(sqlite_path: Path) -> None:
    async def counts(event: Event, session: AsyncSession, job: Job) -> None:
        await session.execute(
            text("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
        )

    engine = sqlite_engine(sqlite_path)
    async with rolled_back(engine) as connection:
        await having(connection, "counts", handler_timeout=0.05)
        assert verdicts(await drain(connection, {"counts": counts}, retry_delay=60)) == {"retried": 1}
        await assert_enqueued(connection, "counts")
    await engine.dispose()


async def test_what_cannot_be_drained_is_refused(engine: AsyncEngine, tmp_path: Path, session: AsyncSession) -> None:
    with pytest.raises(TypeError, match=r"drain\(\) works in your transaction.*not AsyncEngine"):
        await drain(engine, everything)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="max_runs"):
        await drain(session, everything, max_runs=0)
    with pytest.raises(ConfigurationError, match="handler_timeout"):
        await drain(session, everything, handler_timeout=-1)
    with pytest.raises(ConfigurationError, match="retry_delay"):
        await drain(session, everything, retry_delay=-1)
    empty = sqlite_engine(tmp_path / "none.db")
    with pytest.raises(SchemaMismatch, match="the queue's tables are missing"):
        async with rolled_back(empty) as connection:
            await drain(connection, everything)
    await empty.dispose()
    plain = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'plain.db'}")
    with pytest.raises(ConfigurationError, match="sqlite_engine"):
        async with plain.connect() as connection:
            await drain(connection, everything)
    await plain.dispose()


async def test_the_transaction_must_outlive_the_test(engine: AsyncEngine) -> None:
    transaction = rolled_back(engine)
    connection = await transaction.__aenter__()
    await add_job(connection, "x")
    await connection.commit()
    with pytest.raises(AssertionError, match="on the connection itself"):
        await transaction.__aexit__(None, None, None)
    assert await count_jobs(engine) == 1


@pytest.mark.parametrize("sent", [["COMMIT"], ["ROLLBACK"], ["COMMIT", "BEGIN"]], ids=" ".join)
async def test_a_transaction_that_a_text_has_ended_is_noticed(engine: AsyncEngine, sent: list[str]) -> None:
    transaction = rolled_back(engine)
    connection = await transaction.__aenter__()
    await add_job(connection, "x")
    for words in sent:
        await connection.execute(text(words))
    with pytest.raises(AssertionError, match="sent the text COMMIT"):
        await transaction.__aexit__(None, None, None)
    assert await count_jobs(engine) == sent.count("COMMIT")


async def test_a_transaction_that_a_statement_has_failed_is_rolled_back_in_silence(engine: AsyncEngine) -> None:
    async with rolled_back(engine) as connection:
        await add_job(connection, "x")
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT nothing FROM nowhere"))
    assert await count_jobs(engine) == 0


# --- the clock --------------------------------------------------------------------------------------------------------


async def test_what_is_later_is_due_when_the_clock_has_moved(session: AsyncSession) -> None:
    await add_job(session, "returns", delay=60)
    await add_job(session, "snoozes")
    await add_job(session, "raises")

    assert verdicts(await drain(session, everything, retry_delay=20)) == {"snoozed": 1, "retried": 1}
    await move_clock(session, 30)
    assert verdicts(await drain(session, everything)) == {"failed": 1}
    await move_clock(session, timedelta(seconds=30))
    assert verdicts(await drain(session, everything)) == {"completed": 1, "snoozed": 1}


async def test_cron_occurrences_come_due_one_after_the_other(session: AsyncSession) -> None:
    ticks = []

    async def report(event: Event, session: AsyncSession, job: Job) -> None:
        ticks.append((job.scheduled_at, job.cron_last_completed_at))

    await register_cron_jobs(session, [CronJob("report", "0 6 * * *")])
    (first,) = await enqueued(session, "report")
    due = first.scheduled_at
    assert verdicts(await drain(session, {"report": report})) == {}
    for day in range(3):
        await move_clock(session, timedelta(days=1))
        assert verdicts(await drain(session, {"report": report})) == {"completed": 1}, day
        assert verdicts(await drain(session, {"report": report})) == {}

    # Each tick is as long ago as it would be, so at the hour that it was planned for, a day earlier.
    assert [tick for tick, _ in ticks] == [due - timedelta(days=1)] * 3
    assert ticks[0][1] is None
    assert ticks[1][1] < datetime.now(UTC) - timedelta(hours=23)


async def test_a_missing_occurrence_is_stored_by_a_drain(session: AsyncSession) -> None:
    await register_cron_jobs(session, [CronJob("returns", "0 6 * * *")])
    await session.execute(delete(JobRow))
    await drain(session, everything)
    await assert_enqueued(session, "returns")


async def test_leases_lapse_when_the_clock_has_moved(session: AsyncSession) -> None:
    job_id = await add_job(session, "returns")
    row = await session.get_one(JobRow, job_id)
    row.lease_until = datetime.now(UTC) + timedelta(seconds=30)
    assert verdicts(await drain(session, everything)) == {}
    await move_clock(session, 31)
    assert verdicts(await drain(session, everything)) == {"completed": 1}


async def test_every_time_moves(session: AsyncSession) -> None:
    await register_cron_jobs(session, [CronJob("report", "0 6 * * *")])
    await add_job(session, "plain")

    async def times() -> list[Any]:
        session.expire_all()
        jobs = await session.scalars(select(JobRow).order_by(JobRow.id))
        entries = await session.scalars(select(CronRow))
        return [(row.scheduled_at, row.created_at, row.updated_at, row.cron_tick) for row in jobs] + [
            (row.next_at, row.last_completed_at) for row in entries
        ]

    before = await times()
    await move_clock(session, 90.5)
    moved = [tuple(each and each - timedelta(seconds=90.5) for each in row) for row in before]
    assert await times() == moved


@pytest.mark.parametrize("by", [0, -1, float("nan"), float("inf"), "1", None])
async def test_the_clock_moves_forwards_only(connection: AsyncConnection, by: Any) -> None:
    with pytest.raises(ConfigurationError, match="by is a positive number"):
        await move_clock(connection, by)


# --- what is enqueued -------------------------------------------------------------------------------------------------


async def test_enqueued_finds_by_name_and_data(session: AsyncSession) -> None:
    jobs = Handlers()

    @jobs.handler("email.send")
    async def send_email(event: Event, session: AsyncSession, job: Job[Email]) -> None: ...

    first = await send_email.add(session, Email("a@b.c"))
    second = await add_job(session, "email.send", {"to": "d@e.f", "extra": [1]}, delay=60)
    other = await add_job(session, "other", [1, 2])
    done = await add_job(session, "email.send", {"to": "a@b.c"})
    await cancel_job(session, done)

    async def ids(*args: Any) -> list[int]:
        return [row.id for row in await enqueued(session, *args)]

    assert await ids() == [first, second, other]
    assert await ids("email.send") == await ids(send_email) == [first, second]
    assert await ids(send_email, Email("a@b.c")) == [first]
    assert await ids(send_email, Email("d@e.f")) == []  # a handler's payload is whole
    assert await ids("email.send", {"to": "d@e.f"}) == [second]
    assert await ids("email.send", {"extra": [1]}) == [second]
    assert await ids("email.send", {"extra": 1}) == await ids("email.send", {"none": None}) == []
    assert await ids("other", [1, 2]) == [other]
    assert await ids("nothing") == []

    assert (await assert_enqueued(session, send_email, Email("a@b.c"))).id == first
    with pytest.raises(AssertionError, match=r"(?s)^no job is enqueued that would be 'other' with \[1\].*email\.send"):
        await assert_enqueued(session, "other", [1])
    with pytest.raises(AssertionError, match=r"^2 jobs are enqueued that would be 'email\.send'; there are:\n"):
        await assert_enqueued(session, send_email)
    with pytest.raises(InvalidJob, match="Email is not JSON"):
        await assert_enqueued(session, "email.send", Email("a@b.c"))
    with pytest.raises(TypeError, match="a registered handler or a name, not function"):
        await assert_enqueued(session, ids)  # type: ignore[call-overload]


async def test_of_an_empty_queue_the_transaction_is_asked_for(session: AsyncSession) -> None:
    await cancel_job(session, await add_job(session, "email.send"))
    with pytest.raises(AssertionError, match=r"'email\.send', nor any other: was what .* in this same transaction\?$"):
        await assert_enqueued(session, "email.send")


async def test_a_long_queue_is_read_whole_and_shown_in_part(connection: AsyncConnection) -> None:
    for _ in range(2):
        await connection.execute(
            JobRow.__table__.insert(), [{"name": "many", "data": {"number": number}} for number in range(1_000)]
        )
    assert len(await enqueued(connection)) == 2_000
    with pytest.raises(AssertionError) as failed:
        await assert_enqueued(connection, "few")
    assert len(str(failed.value).splitlines()) == 12
    assert "and 1990 more" in str(failed.value)
