"""Another server in the old one's place (D18 and N10 of the fault matrix): a standby that is promoted before it has all
that the primary acknowledged, and a name that leads to another server while the old one still answers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import JobRow, JobState, LeaseLost, NewJob, QueueWorker, add_job, add_jobs
from tests.database.running import Gate, raw
from tests.faults.running import QUICK, told_each_change_once, write
from tests.faults.server import DURABLE, OwnServer, own_server, raw_autocommit
from tests.proxy import Proxy, url_through
from tests.support import ADD_EFFECT, Recorder, all_complete, count_jobs, effects, row_of, until


class Pair:
    """A primary and a standby that follows it through `link`; applications reach what `name` leads to."""

    def __init__(self, primary: OwnServer, standby: OwnServer, link: Proxy, name: Proxy, database: AsyncEngine) -> None:
        self.primary = primary
        self.standby = standby
        self.link = link
        self.name = name
        self.on_primary = database
        self.on_standby = create_async_engine(standby.url.set(database=database.url.database))

    def by_name(self) -> AsyncEngine:
        """An engine of an application, as the guide advises it."""
        return create_async_engine(url_through(self.name, self.on_primary.url), pool_pre_ping=True)

    async def in_step(self) -> None:
        """Wait until the standby has all that the primary has."""
        ((here,),) = await raw(self.on_primary, "SELECT pg_current_wal_flush_lsn()::text")
        behind = "SELECT coalesce(pg_last_wal_replay_lsn() >= CAST(:here AS pg_lsn), false)"

        async def caught_up() -> bool:
            async with self.on_standby.connect() as connection:
                return bool((await connection.exec_driver_sql(behind.replace(":here", f"'{here}'"))).scalar_one())

        await until(caught_up)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with (
        own_server() as primary,
        primary.database() as database,
        Proxy(primary.url) as link,
        Proxy(primary.url) as name,
    ):
        await primary.restart(**DURABLE)
        standby = await primary.copy(url_through(link, primary.url))
        await standby.start()
        made = Pair(primary, standby, link, name, database)
        await made.in_step()
        yield made
        await made.on_standby.dispose()


async def test_d18_a_standby_without_the_last_commits_takes_no_stale_completion(pair, caplog):
    """What the primary acknowledged last is lost, as the guide says: the claims too, so that the standby gives the very
    numbers away again that the first runs still hold."""
    gate, hook = Gate(), Recorder()
    aborted: list[tuple[int, type]] = []
    engine = pair.by_name()

    async def work(event: Any, session: Any, job: Any) -> None:
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        try:
            await gate(event, session, job)
        except asyncio.CancelledError:
            aborted.append((job.id, type(event.signal.reason)))
            raise

    both = {"work": work, "kept": gate.__call__}
    first, second = await add_jobs(pair.on_primary, [NewJob("work", max_retry_count=1), NewJob("kept")])
    await pair.in_step()
    pair.link.down()
    lost = await add_job(pair.on_primary, "work", delay=600)
    async with QueueWorker(engine, both, parallel_count=2, lease=1.0, hooks=[hook], **QUICK) as worker:
        await until(lambda: len(gate.running) == 2)
        claimed = await row_of(pair.on_primary, first)
        assert claimed.claim_no == 1
        await pair.primary.stop("immediate")
        await pair.standby.promote()
        assert await count_jobs(pair.on_standby, JobRow.claim_no == 0) == 2
        pair.name.lead_to(pair.standby.url)
        await until(lambda: worker.healthy)
        await until(lambda: gate.ran.count(first) >= 2 and gate.ran.count(second) >= 2)
        gate.open.set()
        await all_complete(pair.on_standby)
    await engine.dispose()
    assert set(aborted) <= {(first, LeaseLost)}
    assert hook.verdicts.count("completed") == 2
    assert "lost" in hook.verdicts
    assert await effects(pair.on_standby) == [first]
    assert await count_jobs(pair.on_standby, JobRow.id == lost) == 0
    rows = [await row_of(pair.on_standby, job_id) for job_id in (first, second)]
    assert [(row.state, row.retry_count) for row in rows] == [(JobState.completed, 0)] * 2
    told_each_change_once(caplog, hook.states)


async def test_n10_a_name_that_leads_to_another_server_is_followed_though_the_old_one_still_answers(pair, caplog):
    gate, hook = Gate(), Recorder()
    engine = pair.by_name()
    handlers = {"hold": gate.__call__, "write": write}
    held = await add_job(pair.on_primary, "hold", max_retry_count=1)
    async with QueueWorker(engine, handlers, parallel_count=3, hooks=[hook], **QUICK) as worker:
        await until(lambda: gate.running)
        before = await add_job(pair.on_primary, "write")
        await until(lambda: len(hook.settled) == 1)
        await pair.in_step()
        await raw_autocommit(
            pair.on_primary, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
        )
        await pair.standby.promote()
        pair.name.lead_to(pair.standby.url)
        await until(lambda: "database_down" in hook.states)
        await until(lambda: worker.healthy)
        after = await add_jobs(pair.on_standby, [NewJob("write", max_retry_count=1)] * 3)
        gate.open.set()
        await all_complete(pair.on_standby)
        assert await raw(pair.on_primary, "SELECT 1")  # the old one still answers
    await engine.dispose()
    assert await effects(pair.on_standby) == [before, *after]
    row = await row_of(pair.on_standby, held)
    assert (row.state, row.claim_no, row.retry_count) == (JobState.completed, 1, 0)
    assert await count_jobs(pair.on_standby, JobRow.retry_count == 0, JobRow.is_complete) == 5
    told_each_change_once(caplog, hook.states)
