"""The embedded database's engine: its settings, on every connection, also of a private pool cloned from it."""

import asyncio
import gc
import itertools
import re
import sqlite3
import sys
import threading
from pathlib import Path
from uuid import uuid4

import aiosqlite
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from queue_kit import (
    ConfigurationError,
    NewJob,
    QueueWorker,
    _sqlite,
    add_jobs,
    cancel_job,
    engine_from_url,
    register_cron_jobs,
    sqlite_engine,
)
from queue_kit._clone import clone_of
from queue_kit._store import Store
from queue_kit._transactions import Transactions
from tests.support import until


async def settings(engine: AsyncEngine) -> dict[str, object]:
    async with engine.connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return {name: await connection.scalar(text(f"PRAGMA {name}")) for name in names}


@pytest.mark.parametrize(("synchronous", "number"), [("NORMAL", 1), ("FULL", 2)])
async def test_the_settings_are_on_every_connection(sqlite_path, synchronous, number):
    engine = sqlite_engine(sqlite_path, busy_timeout=2.5, synchronous=synchronous)
    private = clone_of(engine)
    expected = {"journal_mode": "wal", "synchronous": number, "foreign_keys": 1, "busy_timeout": 2500}
    assert await settings(engine) == await settings(private) == expected
    await engine.dispose()
    assert await settings(engine) == expected
    await private.dispose()
    await engine.dispose()


async def test_many_who_come_first_to_a_new_file_all_get_in(tmp_path):
    for number in range(40):  # one of twenty refused somebody
        engines = [sqlite_engine(tmp_path / f"{number}.db") for _ in range(8)]
        modes = [each["journal_mode"] for each in await asyncio.gather(*map(settings, engines))]
        assert modes == ["wal"] * 8
        for engine in engines:
            await engine.dispose()


async def test_transactions_begin_immediate_unless_they_only_read(sqlite_path):
    engine = sqlite_engine(sqlite_path, busy_timeout=0)
    private = clone_of(engine)
    for mine, other in ((engine, private), (private, engine)):
        reading = other.execution_options(queue_kit_readonly=True)
        async with mine.begin() as connection:
            await connection.execute(text("INSERT INTO queue_kit_job (name) VALUES ('x')"))
            with pytest.raises(OperationalError, match="database is locked"):
                async with other.begin():
                    pass
            async with reading.begin() as second, AsyncSession(reading) as third:
                assert await second.scalar(text("SELECT count(*) FROM queue_kit_job")) == 0
                assert await third.scalar(text("SELECT count(*) FROM queue_kit_job")) == 0
            await connection.rollback()
    await private.dispose()
    await engine.dispose()


async def test_many_first_connections_at_once(tmp_path):
    engines = [sqlite_engine(tmp_path / "new.db") for _ in range(8)]

    async def use(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS t (x INTEGER)"))
            await connection.execute(text("INSERT INTO t VALUES (1)"))

    await asyncio.gather(*map(use, engines))
    async with engines[0].connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM t")) == len(engines)
    for engine in engines:
        await engine.dispose()


@pytest.mark.parametrize("name", ["50%.db", "it's.db", "a b?c=d#e.db", "ü.db"])
async def test_any_path_is_taken_as_it_is(tmp_path, name):
    for path in (tmp_path / name, str(tmp_path / name)):
        engine = sqlite_engine(path)
        await settings(engine)
        await engine.dispose()
    assert (tmp_path / name).exists()


async def test_only_its_own_engines_are_safe(sqlite_path):
    mine, foreign = sqlite_engine(sqlite_path), create_async_engine(f"sqlite+aiosqlite:///{sqlite_path}")
    event.listen(foreign.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    assert _sqlite.is_safe(mine)
    assert _sqlite.is_safe(clone_of(mine))
    assert not _sqlite.is_safe(foreign)


@pytest.mark.parametrize("path", ["", ":memory:", "file:queue.db?mode=memory", Path("no/such/folder/queue.db")])
def test_what_is_no_file_is_refused(path):
    with pytest.raises(ConfigurationError, match=r"takes the path of a file|the folder of"):
        sqlite_engine(path)


def test_a_url_is_no_path():
    with pytest.raises(ConfigurationError, match=r"not a URL; engine_from_url\(\.\.\.\) does") as caught:
        sqlite_engine("postgresql://ada:geheim@db/shop")  # pragma: allowlist secret
    assert "geheim" not in str(caught.value)


async def test_a_url_gives_an_engine_for_a_worker(database_url):
    engine = engine_from_url(database_url.replace("+asyncpg", "").replace("+aiosqlite", ""), pool_size=3)
    assert await QueueWorker(engine, {}).drain()
    assert engine.pool.size() == 3
    if engine.dialect.name == "postgresql":  # where a server's restart leaves dead connections in the pool
        async with engine.connect() as connection:
            pid = await connection.scalar(text("SELECT pg_backend_pid()"))
        other = engine_from_url(database_url)
        async with other.connect() as connection:
            await connection.scalar(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        await other.dispose()
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await engine.dispose()


@pytest.mark.parametrize(
    "write",
    [
        lambda db: add_jobs(db, [NewJob("a")]),
        lambda db: register_cron_jobs(db, []),
        lambda db: cancel_job(db, 1),
    ],
)
async def test_an_engine_that_waits_for_the_callers_own_transaction_says_so(sqlite_path, write):
    engine = sqlite_engine(sqlite_path, busy_timeout=0.05)
    async with AsyncSession(engine) as session:
        await add_jobs(session, [NewJob("a")])
        with pytest.raises(OperationalError, match="database is locked") as caught:
            await write(engine)
        await write(session)
        assert "pass its session or connection instead of the engine" in "".join(caught.value.__notes__)
        async with AsyncSession(engine) as other:
            with pytest.raises(OperationalError, match="database is locked") as caught:
                await write(other)
        assert not hasattr(caught.value, "__notes__")
    await engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@host/name",  # pragma: allowlist secret
        "no url",
        "postgresql://u:se@cret@host/name",  # pragma: allowlist secret
        "sqlite://",
    ],
)
def test_another_url_is_refused_and_not_quoted(url):
    with pytest.raises(ConfigurationError) as caught:
        engine_from_url(url)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "mend"),
    [
        (
            "postgresql+psycopg2://host/name",
            "on postgresql through asyncpg, not on postgresql+psycopg2: write postgresql:",
        ),
        ("postgres+psycopg://host/name", "on postgres through asyncpg, not on postgres+psycopg: write postgres:"),
        ("sqlite+pysqlite:///app.db", "on sqlite through aiosqlite, not on sqlite+pysqlite: write sqlite:"),
        ("mysql+asyncmy://host/name", "on postgresql and sqlite, not on mysql+asyncmy"),
    ],
)
def test_of_another_driver_is_said_which_one_it_is_and_what_to_write(url, mend):
    with pytest.raises(ConfigurationError, match=re.escape(f"the queue runs {mend}")):
        engine_from_url(url)


def test_an_unknown_setting_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="synchronous is 'NORMAL' or 'FULL', not 'OFF'"):
        sqlite_engine(tmp_path / "queue.db", synchronous="OFF")


def test_an_old_sqlite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(ConfigurationError, match=r"too old, 3\.35 is needed"):
        sqlite_engine(tmp_path / "queue.db")


def test_a_missing_driver_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'queue-kit\[sqlite\]'"):
        sqlite_engine(tmp_path / "queue.db")


async def test_a_cancelled_statement_that_fails_is_not_reported_by_anybody(sqlite_path):
    """It is let run to its end, whose error nobody waits for."""
    engine = sqlite_engine(sqlite_path)
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE queue_kit_history"))
    store = Store(
        Transactions(engine, gate=asyncio.Semaphore(1), lease=30.0),
        worker_id=uuid4(),
        names=[],
        lease=30.0,
        delete_completed=False,
        delete_failed=False,
    )
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    writing = asyncio.create_task(store.add_history([]))
    await asyncio.sleep(0)  # it is under way
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    del writing
    gc.collect()
    await store.dispose()
    await engine.dispose()
    assert reported == []


async def test_a_transaction_that_is_cancelled_again_and_again_keeps_its_turn_to_its_end(sqlite_path):
    engine = sqlite_engine(sqlite_path, busy_timeout=10.0)
    gate, tasks = asyncio.Semaphore(1), asyncio.all_tasks()
    transactions = Transactions(engine, gate=gate, lease=30.0)
    other = sqlite3.connect(sqlite_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(transactions.write(text("DELETE FROM queue_kit_worker"), {}))
    for _ in range(3):
        await asyncio.sleep(0.05)
        writing.cancel()
    await asyncio.sleep(0.05)
    assert gate.locked()
    other.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not gate.locked()
    assert asyncio.all_tasks() == tasks
    other.close()
    await transactions.dispose()
    await engine.dispose()


@pytest.mark.parametrize("jobs", [1, 1_000])
@pytest.mark.parametrize("answers", range(1, 6))
async def test_a_cancelled_transaction_leaves_no_lock_though_its_traceback_lives(
    sqlite_path, monkeypatch, answers, jobs
):
    engine = sqlite_engine(sqlite_path, busy_timeout=0.5)
    counted = itertools.count(1)

    def answer(future: asyncio.Future[object], result: object) -> None:
        """What the driver's thread calls in the loop: at one of the answers the task is cancelled instead."""
        if next(counted) == answers:
            adding.cancel()
        elif not future.done():
            future.set_result(result)

    async with engine.connect():
        pass
    monkeypatch.setattr("aiosqlite.core.set_result", answer)
    adding = asyncio.create_task(add_jobs(engine, [NewJob("tick")] * jobs))
    with pytest.raises(asyncio.CancelledError) as held:
        await adding
    monkeypatch.undo()
    async with engine.begin() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM queue_kit_job")) == 0
    assert held.tb is not None
    await engine.dispose()


async def test_nothing_is_rolled_back_behind_a_commit_where_a_cancellation_would_be_reported(
    sqlite_path, monkeypatch, caplog
):
    engine = sqlite_engine(sqlite_path)
    async with engine.connect():
        pass  # SQLAlchemy looks around in the first connection, and rolls that back
    roll_back = aiosqlite.Connection.rollback

    async def cancelled(connection):
        adding.cancel()
        await roll_back(connection)

    monkeypatch.setattr(aiosqlite.Connection, "rollback", cancelled)
    adding = asyncio.create_task(add_jobs(engine, [NewJob("tick")]))
    (job_id,) = await adding
    assert job_id is not None
    assert caplog.records == []
    monkeypatch.undo()
    await engine.dispose()


async def test_a_transaction_that_was_left_open_is_rolled_back_when_its_connection_comes_back(sqlite_path):
    engine = sqlite_engine(sqlite_path, busy_timeout=0.5, pool_size=1, max_overflow=0)
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        await driver.execute("BEGIN IMMEDIATE")
        await driver.execute("INSERT INTO queue_kit_job (name) VALUES ('left')")
    async with engine.begin() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM queue_kit_job")) == 0
    await engine.dispose()


async def test_others_have_their_turn_while_handlers_hold_the_lock_one_after_the_other(sqlite_path):
    engine, handled = sqlite_engine(sqlite_path), 0

    async def wait_in_it(event, session, job):
        nonlocal handled
        await session.execute(text("SELECT 1"))
        await asyncio.sleep(0.25)  # a service that answers slowly
        handled += 1

    async def write() -> int:
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM queue_kit_cron"))
        return handled

    await add_jobs(engine, [NewJob("work")] * 40)
    async with QueueWorker(engine, {"work": wait_in_it}, parallel_count=10):
        await until(lambda: handled == 1)
        requests = [await write() for _ in range(3)]
    assert requests[-1] < 30
    await engine.dispose()


@pytest.mark.parametrize("many", [False, True])
async def test_who_collects_garbage_does_not_wait_for_a_statement(sqlite_path, many):
    engine = sqlite_engine(sqlite_path)
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        left = []

        def fail():
            left.append(driver._conn.cursor())
            failing, refused = "INSERT INTO queue_kit_job (name, priority) VALUES ('x', ?)", (-1,)
            return left[0].executemany(failing, [refused]) if many else left[0].execute(failing, refused)

        with pytest.raises(sqlite3.IntegrityError):
            await driver._execute(fail)
        begun = threading.Event()
        await driver.create_function("begin_counting", 0, begun.set)
        endless = "WITH RECURSIVE c(x) AS (SELECT begin_counting() UNION ALL SELECT 1 FROM c) SELECT count(*) FROM c"
        running = asyncio.create_task(driver.execute(endless))
        await until(begun.is_set)
        stuck = threading.Timer(5.0, driver._conn.interrupt)
        stuck.start()
        left.clear()
        assert stuck.is_alive()
        stuck.cancel()
        while not running.done():
            driver._conn.interrupt()
            await asyncio.wait({running}, timeout=0.01)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            await running
    await engine.dispose()
