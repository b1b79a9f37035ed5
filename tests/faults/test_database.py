"""Faults of the database (D1 to D12 and D17 of the fault matrix): backends that are killed, a server that crashes, is
away, turns read-only or takes no more connections, statements that it ends, locks and deadlocks. On real servers.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from queue_kit import ConfigurationError, JobRow, JobState, NewJob, QueueWorker, add_job, add_jobs
from tests.database.running import Gate, raw, waits_for_a_lock
from tests.faults.running import QUICK, adding, each_happened_once, told_each_change_once, write
from tests.faults.server import DURABLE, OwnServer, own_server, raw_autocommit
from tests.proxy import Proxy, url_through
from tests.support import (
    ADD_EFFECT,
    DOWN,
    UP,
    Recorder,
    all_complete,
    changes,
    count_jobs,
    effects,
    is_completed,
    make_effects,
    row_of,
    until,
)


@pytest.fixture
async def effect_engine(pg_engine: AsyncEngine) -> AsyncEngine:
    """`pg_engine` with a table of effects."""
    await make_effects(pg_engine)
    return pg_engine


@pytest.fixture
async def victim(effect_engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """Another engine on the same database, as the guide advises it: what breaks is its, `effect_engine` looks on."""
    engine = create_async_engine(effect_engine.url, pool_pre_ping=True)
    yield engine
    await engine.dispose()


FORGETFUL = {"parallel_count": 4, "lease": 3.0, **QUICK}
"""A job whose claim got no reply waits for the end of its lease."""

OTHERS = "datname = current_database() AND pid <> pg_backend_pid()"


# --- D1, D2: backends that are killed ---------------------------------------------------------------------------------


async def test_d1_one_backend_after_the_other_is_killed_and_each_job_is_done_once(effect_engine, victim, caplog):
    dice, hook = random.Random(1), Recorder()
    killed = 0
    async with QueueWorker(victim, {"write": write}, hooks=[hook], **FORGETFUL):
        async with adding(victim) as ledger:
            while killed < 25:
                await ledger.grows()
                pids = await raw(effect_engine, f"SELECT pid FROM pg_stat_activity WHERE {OTHERS} ORDER BY pid")
                (chosen,) = dice.choice(pids)
                ((ended,),) = await raw(effect_engine, "SELECT pg_terminate_backend(:pid)", pid=chosen)
                killed += ended
        await all_complete(effect_engine)
    await each_happened_once(effect_engine, ledger)
    told_each_change_once(caplog, hook.states)


@pytest.mark.parametrize("pre_ping", [True, False])
async def test_d2_all_backends_are_killed_and_the_worker_goes_on_at_once(effect_engine, caplog, pre_ping):
    victim = create_async_engine(effect_engine.url, pool_pre_ping=pre_ping)
    hook, gate = Recorder(), Gate()
    held = await add_jobs(effect_engine, [NewJob("hold", max_retry_count=1)] * 2)
    handlers = {"write": write, "hold": gate.__call__}
    async with QueueWorker(victim, handlers, hooks=[hook], **FORGETFUL) as worker:
        await until(lambda: len(gate.running) == 2)
        for _ in range(3):
            killed = await raw(effect_engine, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")
            assert killed
            before = await add_job(effect_engine, "write")
            await completed(effect_engine, before, seconds=5)
            await until(lambda: worker.healthy)
        gate.open.set()
        await all_complete(effect_engine)
    assert sorted(gate.ran) == held
    assert await count_jobs(effect_engine, JobRow.retry_count == 0, JobRow.state == JobState.completed.value) == 5
    assert len(await effects(effect_engine)) == 3
    await victim.dispose()
    assert pre_ping or "database_down" in hook.states
    told_each_change_once(caplog, hook.states)


async def completed(engine: AsyncEngine, job_id: int, *, seconds: float) -> None:
    await until(lambda: is_completed(engine, job_id), seconds=seconds)


# --- D3 to D5, D11: a server that crashes, is away, read-only or full of connections ----------------------------------


@pytest.fixture
async def own() -> AsyncIterator[OwnServer]:
    async with own_server() as made:
        yield made


async def test_d3_a_server_that_crashes_keeps_what_it_acknowledged_and_each_job_is_done_once(own, caplog):
    await own.restart(**DURABLE)
    hook = Recorder()
    async with own.database() as engine:
        async with QueueWorker(engine, {"write": write}, hooks=[hook], **FORGETFUL) as worker:
            async with adding(engine) as ledger:
                for _ in range(2):
                    await ledger.grows(20)
                    await own.restart("immediate", **DURABLE)
                    await until(lambda: worker.healthy)
                await ledger.grows(5)
            await all_complete(engine)
        assert ledger.refused
        assert hook.states.count("database_down") >= 2
        await each_happened_once(engine, ledger)
    told_each_change_once(caplog, hook.states)


async def test_d4_a_server_that_is_away_is_asked_about_once_a_second_and_no_try_is_spent(own, caplog):
    """Scaled: 8 s instead of 60. The first attempts come quicker, so the rate is that of the later ones."""
    gate, hook = Gate(), Recorder()
    async with own.database() as direct, Proxy(own.url) as proxy:
        engine = create_async_engine(url_through(proxy, direct.url), pool_pre_ping=True)
        kept, written = await add_jobs(direct, [NewJob("hold", max_retry_count=1), NewJob("both", max_retry_count=1)])

        async def both(event: Any, session: Any, job: Any) -> None:
            await gate(event, session, job)
            await session.execute(ADD_EFFECT, {"job_id": job.id})

        handlers = {"hold": gate.__call__, "both": both}
        async with QueueWorker(engine, handlers, parallel_count=2, hooks=[hook], **QUICK) as worker:
            await until(lambda: len(gate.running) == 2)
            await own.stop()
            await until(lambda: not worker.healthy)
            gate.open.set()
            before = proxy.attempts
            await asyncio.sleep(3.0)  # seconds are what is measured here: while the pauses grow, and after that
            at_first = proxy.attempts - before
            await asyncio.sleep(5.0)
            later = proxy.attempts - before - at_first
            await own.start()
            await all_complete(direct)
        await engine.dispose()
        assert 1 <= at_first <= 12
        assert 2 <= later <= 7
        rows = [await row_of(direct, job_id) for job_id in (kept, written)]
        assert [(row.state, row.retry_count) for row in rows] == [(JobState.completed, 0)] * 2
        assert await effects(direct) == [written]
    assert changes(caplog) == [DOWN, UP]
    told_each_change_once(caplog, hook.states)


async def test_d5_a_server_that_turns_read_only_is_waited_for_and_no_try_is_spent(own, caplog):
    gate, hook = Gate(), Recorder()

    async def writes(event: Any, session: Any, job: Any) -> None:
        await gate(event, session, job)
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    async with own.database() as engine:
        ids = await add_jobs(engine, [NewJob("writes", max_retry_count=1)] * 3)
        options = {"parallel_count": 3, "lease": 1.0, "hooks": [hook], **QUICK}
        async with QueueWorker(engine, {"writes": writes}, **options) as worker:
            await until(lambda: len(gate.running) == 3)
            await raw_autocommit(
                engine, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
            )
            await until(lambda: not worker.healthy)
            gate.open.set()
            await until(lambda: not gate.running)
            await asyncio.sleep(1.0)  # in which a worker that takes any answer for a good one would go up and down
            assert not worker.healthy
            await raw_autocommit(
                engine,
                "SET default_transaction_read_only = off",
                "ALTER SYSTEM RESET default_transaction_read_only",
                "SELECT pg_reload_conf()",
            )
            await all_complete(engine)
        assert await effects(engine) == ids
        assert await count_jobs(engine, JobRow.state == JobState.completed.value, JobRow.retry_count == 0) == 3
    assert changes(caplog) == [DOWN, UP]
    told_each_change_once(caplog, hook.states)


async def test_d5_a_worker_is_not_started_on_a_server_that_is_read_only_and_says_why(effect_engine, victim):
    await set_for_new_connections(effect_engine, default_transaction_read_only="on")
    with pytest.raises(ConfigurationError, match="read-only"):
        await QueueWorker(victim, {"write": write}).start()


@pytest.fixture
async def crowded(own: OwnServer) -> AsyncIterator[AsyncEngine]:
    """An engine on a server that has few connections."""
    await own.restart(max_connections=16, superuser_reserved_connections=0)
    async with own.database() as engine:
        yield engine


async def test_d11_a_server_without_a_free_connection_loses_no_lease(own, crowded, caplog):
    gate, hook = Gate(), Recorder()
    ids = await add_jobs(crowded, [NewJob("hold", max_retry_count=1)] * 4)
    options = {"parallel_count": 4, "lease": 3.0, "hooks": [hook], **QUICK}
    async with QueueWorker(crowded, {"hold": gate.__call__}, **options):
        await until(lambda: len(gate.running) == 4)
        async with crowded.connect() as mine, every_connection_taken(own):
            await seconds_pass(mine, 4.0)
        gate.open.set()
        await all_complete(crowded)
    rows = [await row_of(crowded, job_id) for job_id in ids]
    assert [(row.state, row.claim_no, row.lost, row.retry_count) for row in rows] == [(JobState.completed, 1, 0, 0)] * 4
    told_each_change_once(caplog, hook.states)


async def test_d11_a_handler_that_gets_no_connection_spends_no_try(own, crowded, caplog):
    hook = Recorder()
    options = {"parallel_count": 4, "hooks": [hook], "poll_interval": 0.1, "retry_delay": 3.0}
    async with QueueWorker(crowded, {"write": write}, **options):
        async with crowded.connect() as mine, every_connection_taken(own):
            ids = await add_jobs(mine, [NewJob("write", max_retry_count=1)] * 4)
            await mine.commit()
            await until(lambda: hook.settled)
        await all_complete(crowded)
    assert set(hook.verdicts) == {"released", "completed"}
    assert await effects(crowded) == ids
    assert await count_jobs(crowded, JobRow.state == JobState.completed.value, JobRow.retry_count == 0) == 4
    told_each_change_once(caplog, hook.states)


@contextlib.asynccontextmanager
async def every_connection_taken(server: OwnServer) -> AsyncIterator[None]:
    """Others connect until the server has no connection left."""
    taken: list[asyncpg.Connection] = []

    async def take_all() -> None:
        while True:
            taken.append(await asyncpg.connect(host=str(server.url.query["host"]), user="postgres"))

    with pytest.raises(asyncpg.TooManyConnectionsError):
        await take_all()
    assert taken
    try:
        yield
    finally:
        for each in taken:
            await each.close()


async def seconds_pass(connection: AsyncConnection, seconds: float) -> None:
    """Wait until the database's clock has gone on."""

    async def now() -> datetime:
        return (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()

    end = await now() + timedelta(seconds=seconds)

    async def over() -> bool:
        return await now() > end

    await until(over)


# --- D6 to D10: statements that the database ends ---------------------------------------------------------------------


async def set_for_new_connections(engine: AsyncEngine, **settings: str) -> None:
    """Change settings of this database, and have all who use it connect anew."""
    for name, value in settings.items():
        await raw(engine, f"ALTER DATABASE {engine.url.database} SET {name} = '{value}'")
    await raw(engine, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")


async def test_d6_statements_that_a_timeout_ends_are_sent_again(effect_engine, victim, caplog):
    gate, hook = Gate(), Recorder()
    ids = await add_jobs(effect_engine, [NewJob("hold", max_retry_count=1)] * 20)
    async with QueueWorker(victim, {"hold": gate.__call__}, parallel_count=4, hooks=[hook], **QUICK) as worker:
        await until(lambda: len(gate.running) == 4 and hook.listener == ["listening"])
        await set_for_new_connections(effect_engine, statement_timeout="50ms")
        await until(lambda: hook.listener == ["listening", "polling", "listening"] and worker.healthy)
        async with effect_engine.connect() as other, other.begin():
            await other.execute(text("LOCK TABLE queue_kit_job IN ACCESS EXCLUSIVE MODE"))
            gate.open.set()
            await until(lambda: "canceling statement due to statement timeout" in caplog.text)
            await until(lambda: "database_down" in hook.states)
        await all_complete(effect_engine)
    assert sorted(gate.ran) == ids
    assert await count_jobs(effect_engine, JobRow.retry_count == 0, JobRow.lost == 0, JobRow.claim_no == 1) == 20
    told_each_change_once(caplog, hook.states)


async def test_d7_a_job_that_somebody_has_locked_holds_up_no_other(effect_engine, victim, caplog):
    hook = Recorder()
    await set_for_new_connections(effect_engine, lock_timeout="50ms")
    ids = await add_jobs(effect_engine, [NewJob("write", max_retry_count=1)] * 30)
    async with effect_engine.connect() as other:
        await other.execute(text("SELECT 1 FROM queue_kit_job WHERE id = :id FOR UPDATE"), {"id": ids[0]})
        async with QueueWorker(victim, {"write": write}, parallel_count=4, hooks=[hook], **QUICK):
            await until(lambda: len(hook.settled) == 29)
            assert {record.job.id for record in hook.started} == set(ids[1:])
            await other.rollback()
            await all_complete(effect_engine)
    assert await effects(effect_engine) == ids
    assert await count_jobs(effect_engine, JobRow.retry_count == 0, JobRow.claim_no == 1) == 30
    assert "database_down" not in hook.states
    told_each_change_once(caplog, hook.states)


async def test_d8_a_transaction_that_idles_too_long_is_ended_with_a_clear_error_and_harms_no_other(
    effect_engine, victim, caplog
):
    hook = Recorder()

    async def slow(event: Any, session: Any, job: Any) -> None:
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        pid = await session.scalar(text("SELECT pg_backend_pid()"))

        async def gone() -> bool:
            return not await raw(effect_engine, "SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=pid)

        await until(gone)
        if job.data["goes_on"]:
            await session.execute(ADD_EFFECT, {"job_id": job.id})

    await set_for_new_connections(effect_engine, idle_in_transaction_session_timeout="200ms")
    async with QueueWorker(victim, {"slow": slow, "write": write}, parallel_count=3, hooks=[hook], **QUICK) as worker:
        slow_ids = await add_jobs(
            effect_engine, [NewJob("slow", {"goes_on": goes_on}, max_retry_count=1) for goes_on in (True, False)]
        )
        others = await add_jobs(effect_engine, [NewJob("write", max_retry_count=1)] * 10)
        await all_complete(effect_engine)
        assert worker.healthy
    for job_id in slow_ids:
        row = await row_of(effect_engine, job_id)
        assert (row.state, row.lost) == (JobState.failed, 2)  # the first time is free
        assert row.errors[0]["reason"] == "the connection to the database broke"
        # The second is what asyncpg says of a statement that meets the server's farewell.
        assert re.search("connection is closed|another operation .* is in progress", row.errors[0]["message"])
    assert await effects(effect_engine) == others
    assert "database_down" not in hook.states
    told_each_change_once(caplog, hook.states)


COUNTED = (
    "CREATE TABLE tally (n BIGINT)",
    "INSERT INTO tally VALUES (0)",
    """CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN UPDATE tally SET n = n + 1; RETURN NEW; END $$""",
    """CREATE TRIGGER counted AFTER UPDATE ON queue_kit_job FOR EACH ROW WHEN (NEW.status = 2)
    EXECUTE FUNCTION count_it()""",
)


async def test_d9_a_worker_that_a_deadlock_chose_writes_its_endings_again(effect_engine, victim, caplog):
    """A trigger of the application counts completions. Somebody holds the count, and wants the job that is settled."""
    for statement in COUNTED:
        await raw(effect_engine, statement)
    gate, hook = Gate(), Recorder()
    job_id = await add_job(effect_engine, "hold", max_retry_count=1)
    async with QueueWorker(victim, {"hold": gate.__call__}, hooks=[hook], **QUICK) as worker:
        await until(lambda: gate.running)
        await set_for_new_connections(effect_engine, deadlock_timeout="2s")  # looked for once, after so long a wait
        async with effect_engine.connect() as other:
            await other.execute(text("SET LOCAL deadlock_timeout = '60s'"))  # or it might be the one that is ended
            await other.execute(text("UPDATE tally SET n = n + 10"))
            gate.open.set()
            await until(lambda: waits_for_a_lock(effect_engine))
            await other.execute(text("SELECT 1 FROM queue_kit_job WHERE id = :id FOR UPDATE"), {"id": job_id})
            await until(lambda: "deadlock detected" in caplog.text)
            await other.commit()
        await all_complete(effect_engine)
        await until(lambda: worker.healthy)
    assert hook.verdicts == ["completed"]
    row = await row_of(effect_engine, job_id)
    assert (row.state, row.claim_no, row.retry_count) == (JobState.completed, 1, 0)
    assert await raw(effect_engine, "SELECT n FROM tally") == [(11,)]
    told_each_change_once(caplog, hook.states)


async def test_d9_adding_jobs_through_an_engine_is_tried_again_after_a_deadlock(effect_engine, victim):
    await set_for_new_connections(effect_engine, deadlock_timeout="2s")
    insert = "INSERT INTO queue_kit_job (name, unique_key) VALUES ('write', :key)"
    async with effect_engine.connect() as other:
        await other.execute(text("SET LOCAL deadlock_timeout = '60s'"))
        await other.execute(text(insert), {"key": "b"})
        adding_both = asyncio.create_task(add_jobs(victim, [NewJob("write", unique_key=key) for key in ("a", "b")]))
        await until(lambda: waits_for_a_lock(effect_engine))
        await other.execute(text(f"{insert} ON CONFLICT DO NOTHING"), {"key": "a"})
        await other.commit()
    assert await adding_both == [None, None]
    assert await count_jobs(effect_engine) == 2


async def test_d10_a_serialization_failure_reaches_the_caller_as_it_is_and_leaves_no_job(effect_engine):
    serializable = create_async_engine(effect_engine.url, isolation_level="SERIALIZABLE")
    async with AsyncSession(serializable) as first, AsyncSession(serializable) as second:
        for session in (first, second):  # each reads what the other writes
            await session.execute(text("SELECT count(*) FROM effect"))
        for job_id, session in enumerate((first, second)):
            await session.execute(ADD_EFFECT, {"job_id": job_id})
        kept = await add_job(first, "write")
        await first.commit()
        with pytest.raises(DBAPIError) as refused:  # noqa: PT012 - either of the two may be the one
            await add_job(second, "write")
            await second.commit()
        assert getattr(refused.value.orig, "sqlstate", None) == "40001"
        await second.rollback()
        again = await add_job(second, "write")  # as the caller does who runs its transaction again
        await second.commit()
    await serializable.dispose()
    assert await effects(effect_engine) == [0]
    assert await count_jobs(effect_engine, JobRow.id.in_([kept, again])) == await count_jobs(effect_engine) == 2


# --- D12: a pool that handlers have emptied ---------------------------------------------------------------------------


async def test_d12_a_pool_that_handlers_emptied_loses_no_lease(effect_engine, caplog):
    engine = create_async_engine(effect_engine.url, pool_size=3, max_overflow=0, pool_pre_ping=True)
    release, hook = asyncio.Event(), Recorder()
    held: list[int] = []

    async def greedy(event: Any, session: Any, job: Any) -> None:
        """Takes a connection past its session, so that nothing bounds how many it takes."""
        async with engine.connect():
            held.append(job.id)
            await release.wait()

    ids = await add_jobs(effect_engine, [NewJob("greedy", max_retry_count=1)] * 3)
    async with QueueWorker(engine, {"greedy": greedy}, parallel_count=3, lease=3.0, hooks=[hook], **QUICK) as worker:
        await until(lambda: len(held) == 3)
        assert engine.pool.status().endswith("Current Checked out connections: 3")
        async with effect_engine.connect() as mine:
            await seconds_pass(mine, 4.0)
        assert worker.healthy
        release.set()
        await all_complete(effect_engine)
    await engine.dispose()
    rows = [await row_of(effect_engine, job_id) for job_id in ids]
    assert [(row.state, row.claim_no, row.lost) for row in rows] == [(JobState.completed, 1, 0)] * 3
    assert "database_down" not in hook.states
    told_each_change_once(caplog, hook.states)


# --- D17: a snapshot that somebody keeps ------------------------------------------------------------------------------


async def test_d17_a_snapshot_that_somebody_keeps_makes_working_less_than_three_times_as_costly(effect_engine):
    """Scaled: a few thousand dead rows that nobody may remove, instead of three minutes; in pages that are touched,
    which no other load on the machine changes."""

    async def idle(event: Any, session: Any, job: Any) -> None:
        pass

    async def pages_of_a_round() -> int:
        engine = create_async_engine(effect_engine.url)
        before = await pages_touched(effect_engine)
        await add_jobs(engine, [NewJob("idle")] * 1_000)
        counts = await QueueWorker(engine, {"idle": idle}, parallel_count=10).drain()
        assert counts["completed"] == 1_000
        await engine.dispose()
        return await pages_touched(effect_engine) - before

    freely = []
    for _ in range(3):
        await raw_autocommit(effect_engine, "VACUUM queue_kit_job")
        freely.append(await pages_of_a_round())
    async with effect_engine.connect() as other:
        await other.execution_options(isolation_level="REPEATABLE READ")
        await other.execute(text("SELECT count(*) FROM queue_kit_job"))
        pinned = [await pages_of_a_round() for _ in range(5)]
        await raw_autocommit(effect_engine, "VACUUM queue_kit_job")
        ((dead,),) = await raw(effect_engine, DEAD_ROWS)
        assert dead >= 5_000
    assert min(freely) > 1_000
    assert max(pinned) < 3 * max(freely)


DEAD_ROWS = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'queue_kit_job'"


async def pages_touched(engine: AsyncEngine) -> int:
    """By all connections that are closed by now; each tells at its end."""

    async def alone() -> bool:
        found = await raw(engine, f"SELECT 1 FROM pg_stat_activity WHERE {OTHERS} AND state = 'idle'")
        return not found

    await until(alone)
    query = "SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database()"
    ((pages,),) = await raw(engine, query)
    return pages
