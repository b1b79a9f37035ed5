"""The schema changes while workers run: how long they stall, which versions get along, and what is left of a migration
that was killed, refused its lock, or met another one.

A test's own revision stands in for the next one, run by a process that takes itself for the
next version of the library; this process is the old one.
"""

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import (
    ConfigurationError,
    Handlers,
    JobRow,
    JobState,
    QueueWorker,
    SchemaMismatch,
    _revisions,
    add_job,
    migrate,
)
from queue_kit.cli import main
from tests.conftest import engine_for
from tests.database.running import job_in, raw
from tests.faults.running import QUICK, adding, each_happened_once, write
from tests.faults.upgrading import Next, builders, built, is_waited_for
from tests.support import all_complete, count_jobs, make_effects, row_of, until

LEASE = 10.0

MARGIN = 4.0
"""What a busy machine may add to a stall."""


@pytest.fixture
def following(tmp_path: Path, database_url: str) -> Next:
    """The next version of the library, on the test's database."""
    return Next(tmp_path, database_url)


@pytest.fixture
def following_on_postgres(tmp_path: Path, postgres_url: str) -> Next:
    """The same, on the PostgreSQL database of `pg_engine`."""
    return Next(tmp_path, postgres_url)


@pytest.fixture
def jobs() -> Handlers:
    handlers = Handlers()
    handlers.add("write", write, max_retry_count=20)
    return handlers


class Stalls:
    """A hook that notes when jobs end: the longest pause between two of them."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_settled(self, record: Any) -> None:
        self.ended.append(time.monotonic())

    def longest(self) -> float:
        return max(later - earlier for earlier, later in pairwise(self.ended))


async def has_half(engine: AsyncEngine) -> bool:
    """Whether anything is left of the next version's first half."""
    async with engine.connect() as connection:
        return bool(await connection.run_sync(lambda sync: sync.dialect.has_table(sync, "queue_kit_half")))


# --- U1 ---------------------------------------------------------------------------------------------------------------


async def test_u1_a_migration_behind_a_users_lock_stalls_workers_no_longer_than_its_lock_timeout(
    pg_engine, following_on_postgres, jobs
):
    await make_effects(pg_engine)
    stalls = Stalls()
    async with (
        QueueWorker(pg_engine, jobs, lease=LEASE, hooks=[stalls], **QUICK),
        adding(pg_engine) as ledger,
        pg_engine.connect() as user,
    ):
        await user.execute(text("LOCK TABLE queue_kit_job IN ACCESS SHARE MODE"))
        await ledger.grows(10)
        refused = await following_on_postgres.run(lock_timeout="1s")
        await ledger.grows(10)
        before = len(stalls.ended)
        await until(lambda: len(stalls.ended) > before)
        behind_a_lock = stalls.longest()
        assert (refused.status, await migrate.schema_version(pg_engine)) == (1, 2)
        assert refused.errors.startswith("Error: ")
        assert "lock" in refused.errors
        await user.rollback()
        assert (await following_on_postgres.run(lock_timeout="1s")).status == 0
        await ledger.grows(10)
        assert await migrate.schema_version(pg_engine) == 3
    async with QueueWorker(pg_engine, jobs, **QUICK):
        await all_complete(pg_engine)
    print(f"stalled {behind_a_lock:.2f} s behind a lock_timeout of 1 s")
    assert 0.8 < behind_a_lock < 1.0 + 1.0 + MARGIN
    await each_happened_once(pg_engine, ledger)
    assert await count_jobs(pg_engine, JobRow.lost > 0) == 0


async def test_u1_workers_go_on_through_a_migration(engine, following, jobs):
    await make_effects(engine)
    stalls = Stalls()
    async with QueueWorker(engine, jobs, lease=LEASE, hooks=[stalls], **QUICK), adding(engine) as ledger:
        await ledger.grows(10)
        done = await following.run()
        assert done.status == 0, done.errors
        await ledger.grows(10)
        before = len(stalls.ended)
        await until(lambda: len(stalls.ended) > before)
        assert await migrate.schema_version(engine) == 3
    async with QueueWorker(engine, jobs, **QUICK):
        await all_complete(engine)
    print(f"stalled {stalls.longest():.2f} s")
    assert stalls.longest() < 3.0 + 1.0 + MARGIN
    await each_happened_once(engine, ledger)
    assert await count_jobs(engine, JobRow.lost > 0) == 0


async def test_u1_a_migration_waits_for_each_lock_as_long_as_it_says(pg_engine, following_on_postgres):
    assert (await following_on_postgres.run()).status == 0
    assert await raw(pg_engine, "SELECT lock_timeout FROM queue_kit_half") == [(migrate.LOCK_TIMEOUT,)]


@pytest.mark.parametrize(
    ("own", "taken"),
    [
        ("0", "3s"),
        ("7s", "7s"),
    ],
)
async def test_u1_a_migration_in_an_applications_history_has_a_bound_too_and_leaves_the_applications(
    pg_engine, following_on_postgres, monkeypatch, own, taken
):
    monkeypatch.setattr(migrate, "VERSION", 3)
    monkeypatch.setattr(_revisions, "script_location", lambda: following_on_postgres.folder)

    def revision(connection: Connection) -> None:
        migrate.upgrade_in_revision(Operations(MigrationContext.configure(connection)), to=3)

    async with pg_engine.begin() as connection:
        await connection.execute(text(f"SET LOCAL lock_timeout = '{own}'"))
        await connection.run_sync(revision)
        assert await connection.scalar(text("SELECT lock_timeout FROM queue_kit_half")) == taken
        assert await connection.scalar(text("SHOW lock_timeout")) == own


async def test_u1_a_migration_that_got_no_lock_says_what_to_do(pg_engine, following_on_postgres):
    async with pg_engine.connect() as user:
        await user.execute(text("LOCK TABLE queue_kit_job IN ACCESS SHARE MODE"))
        refused = await following_on_postgres.run(lock_timeout="50ms")
        assert refused.status == 1
        assert "nothing was changed" in refused.errors
        assert "run it again" in refused.errors


# --- U2 ---------------------------------------------------------------------------------------------------------------


async def test_u2_an_old_worker_runs_on_a_newer_schema_that_allows_it(engine, following, jobs):
    await make_effects(engine)
    async with QueueWorker(engine, jobs, **QUICK):
        assert (await following.run()).status == 0
        running = await add_job(engine, "write")
        await all_complete(engine)
    async with QueueWorker(engine, jobs, **QUICK):  # and one that starts only now
        started = await add_job(engine, "write")
        await all_complete(engine)
    assert await migrate.schema_version(engine) == 3
    assert [(await row_of(engine, job_id)).state for job_id in (running, started)] == [JobState.completed] * 2


async def test_u2_an_old_worker_refuses_a_newer_schema_that_has_left_it_behind(engine, database_url, following, jobs):
    assert (await following.run()).status == 0
    await raw(engine, "UPDATE queue_kit_schema SET compatible_from = 3 WHERE version = 3")
    waiting = await add_job(engine, "write")
    sentence = "the queue's schema 3 needs a queue_kit for version 3 or later, not for 2: upgrade queue-kit"
    with pytest.raises(SchemaMismatch, match=sentence):
        await QueueWorker(engine, jobs).start()
    told = await asyncio.to_thread(CliRunner().invoke, main, ["check", "--database-url", database_url])
    assert (told.exit_code, told.output) == (1, f"BAD  {sentence}\n")
    assert (await row_of(engine, waiting)).claim_no == 0


async def test_u2_a_new_worker_refuses_an_old_schema(engine, following, jobs, monkeypatch):
    waiting = await add_job(engine, "write")
    with monkeypatch.context() as newer:
        newer.setattr(migrate, "VERSION", 3)
        with pytest.raises(SchemaMismatch, match="is at version 2, this queue_kit needs 3"):
            await QueueWorker(engine, jobs).start()
    assert (await row_of(engine, waiting)).claim_no == 0
    told = await following.run("check")
    assert (told.status, told.errors) == (1, "")
    assert told.output.startswith(
        "BAD  the queue's schema is at version 2, this queue_kit needs 3: run `queue-kit migrate`"
    )
    assert (await following.run()).status == 0
    assert (await following.run("check")).output.startswith("ok   the schema is at version 3")


# --- U3 ---------------------------------------------------------------------------------------------------------------


async def test_u3_a_migration_killed_half_way_leaves_nothing_and_runs_again(engine, following):
    kept = await add_job(engine, "write")
    async with following.start(pause=True) as process:
        await process.half_way()
        process.kill()
        assert (await process.ended()).status == -signal.SIGKILL
    assert (await migrate.schema_version(engine), await has_half(engine)) == (2, False)
    again = await following.run()
    assert again == (0, "the schema went from version 2 to 3\n", "")
    assert await has_half(engine)
    assert (await row_of(engine, kept)).state is JobState.ready


async def test_u3_a_migration_whose_connection_is_cut_half_way_leaves_nothing_and_says_so(
    pg_engine, following_on_postgres
):
    async with following_on_postgres.start(pause=True) as process:
        await process.half_way()
        terminated = await raw(
            pg_engine,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND state = 'idle in transaction'",
        )
        assert terminated == [(True,)]
        process.go_on()
        cut = await process.ended()
    assert cut.status == 1
    assert cut.errors.startswith("Error: ")
    assert "Traceback" not in cut.errors
    assert (await migrate.schema_version(pg_engine), await has_half(pg_engine)) == (2, False)
    assert (await following_on_postgres.run()).status == 0


async def gone(engine: AsyncEngine, backend: int) -> bool:
    return not await raw(engine, f"SELECT 1 FROM pg_stat_activity WHERE pid = {backend}")


async def test_u3_an_index_that_a_killed_migration_left_half_built_is_built_again(pg_engine, following_on_postgres):
    async with pg_engine.connect() as user:
        await user.execute(text("INSERT INTO queue_kit_job (name) VALUES ('a')"))
        async with following_on_postgres.start() as process:
            (builder,) = await until(lambda: builders(pg_engine))
            async with asyncio.timeout(5):
                await add_job(pg_engine, "write")  # while it is built
            process.kill()
            assert (await process.ended()).status == -signal.SIGKILL
        await raw(pg_engine, f"SELECT pg_terminate_backend({builder})")
        await until(lambda: gone(pg_engine, builder))
        assert await built(pg_engine) == [False]
        await user.rollback()
    again = await following_on_postgres.run()
    assert again == (0, "the schema went from version 2 to 3\n", "")
    assert await built(pg_engine) == [True]


async def test_u3_what_the_server_still_builds_for_a_killed_migration_is_waited_for(pg_engine, following_on_postgres):
    await is_waited_for(pg_engine, following_on_postgres)


# --- U4 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["scheduled", "ready", "lapsed", "running"])
async def test_u4_a_downgrade_that_would_lose_a_live_job_is_refused(engine, state):
    job_id = await job_in(engine, state)
    with pytest.raises(ConfigurationError, match="1 job"):
        await migrate.downgrade(engine)
    assert (await row_of(engine, job_id)).is_complete is False
    await raw(engine, "DELETE FROM queue_kit_job")
    await migrate.downgrade(engine)
    assert await migrate.schema_version(engine) is None


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
async def test_u4_a_downgrade_takes_finished_jobs_along(engine, state):
    await job_in(engine, state)
    await migrate.downgrade(engine)
    assert await migrate.schema_version(engine) is None


async def test_u4_a_downgrade_between_versions_keeps_every_job(engine, following, monkeypatch):
    ids = [await job_in(engine, state) for state in ("scheduled", "ready", "running", "failed")]
    assert (await following.run()).status == 0
    monkeypatch.setattr(migrate, "VERSION", 3)
    monkeypatch.setattr(_revisions, "script_location", lambda: following.folder)
    await migrate.downgrade(engine, to=2)
    assert (await migrate.schema_version(engine), await has_half(engine)) == (2, False)
    assert await raw(engine, "SELECT id FROM queue_kit_job ORDER BY id") == [(job_id,) for job_id in ids]


# --- U5 ---------------------------------------------------------------------------------------------------------------


async def test_u5_of_two_migrating_processes_one_waits_for_the_other(engine, database_url, following):
    async with following.start(pause=True) as first:
        await first.half_way()
        async with following.start() as second:
            await until(waits(engine, second.pid))
            assert second.alive
            first.go_on()
            ends = [await first.ended(), await second.ended()]
    assert [end.status for end in ends] == [0, 0], ends
    assert await raw(engine, "SELECT count(*) FROM queue_kit_schema WHERE version = 3") == [(1,)]
    fresh = engine_for(database_url)
    assert await migrate.schema_version(fresh) == 3
    await fresh.dispose()


async def test_u5_two_that_build_an_index_beside_the_writers_do_not_deadlock(pg_engine, following_on_postgres):
    async with pg_engine.connect() as user:
        await user.execute(text("INSERT INTO queue_kit_job (name) VALUES ('a')"))
        async with following_on_postgres.start() as first:
            await until(lambda: builders(pg_engine))
            async with following_on_postgres.start() as second:
                await until(asks_again(pg_engine))
                assert len(await builders(pg_engine)) == 1
                await user.rollback()
                ends = [await first.ended(), await second.ended()]
    assert [end.status for end in ends] == [0, 0], ends
    assert await built(pg_engine) == [True]
    assert await raw(pg_engine, "SELECT count(*) FROM queue_kit_schema WHERE version = 3") == [(1,)]


def asks_again(engine: AsyncEngine) -> Callable[[], Awaitable[bool]]:
    """Whether a migrating process asks, over and over, for its turn: what it says last is that it gives up the
    transaction in which it asked."""
    seen: dict[int, set[datetime]] = defaultdict(set)

    async def asked() -> bool:
        about = (
            "SELECT pid, state_change FROM pg_stat_activity WHERE datname = current_database() AND query = 'ROLLBACK;'"
        )
        for pid, changed in await raw(engine, f"{about} AND pid <> pg_backend_pid()"):
            seen[pid].add(changed)
        return any(len(times) > 3 for times in seen.values())

    return asked


def waits(engine: AsyncEngine, pid: int) -> Callable[[], Awaitable[bool]]:
    """Whether a migrating process has come to where it waits for its turn."""
    if engine.dialect.name == "postgresql":
        return asks_again(engine)
    mapped = Path(f"/proc/{pid}/maps")
    if not mapped.exists():
        pytest.skip("which file a process reads is seen in /proc, which is missing")

    async def reads() -> bool:
        return f"{engine.url.database}-shm" in mapped.read_text()

    return reads
