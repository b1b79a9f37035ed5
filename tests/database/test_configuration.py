"""What a worker is given: every argument that could not work is refused when it is constructed, or else when it starts,
and every pool that can serve does.
"""

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from queue_kit import ConfigurationError, NewJob, QueueWorker, add_jobs, sqlite_engine
from tests.conftest import engine_for
from tests.support import Recorder, until


async def handler(event, session, job):
    await session.execute(text("SELECT 1"))


HANDLERS = {"a": handler, "b": handler}


@pytest.fixture
def lazy() -> AsyncEngine:
    """An engine that nothing ever connects with."""
    return create_async_engine("postgresql+asyncpg://user@127.0.0.1:1/none")


# --- arguments --------------------------------------------------------------------------------------------------------

NO_NUMBERS: list[Any] = [-1, -0.001, math.nan, "5", None, timedelta(seconds=-1), [1], 1j]

WRONG: dict[str, list[Any]] = {
    "parallel_count": [0, -1, 1.5, 2.0, "2", True, None],
    "prefetch": [-1, 1.5, "2", True],
    "poll_interval": [*NO_NUMBERS, 0, timedelta(0), math.inf],
    "lease": [*NO_NUMBERS, 0, timedelta(0), math.inf],
    "grace": [*NO_NUMBERS, math.inf],
    "cancel_grace": [*NO_NUMBERS, math.inf],
    "handler_timeout": [value for value in NO_NUMBERS if value is not None],
    "max_retry_count": [0, -1, 1.5, "2", True],
    "retry_delay": [-1, math.nan, math.inf, "5", timedelta(seconds=-1)],
    "session_isolation": ["AUTOCOMMIT", "READ UNCOMMITTED", "read committed", "", 3],
    "session_factory": ["session", 5, object()],
    "listen": [None, 1, 0, "postgresql://", create_engine("sqlite://")],
    "included_names": ["a", "", ["a", "unknown"], ["A"], [1], 5],
    "excluded_names": ["a", "", 5],
    "hooks": [5, object()],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_an_argument_that_could_not_work_is_refused_by_name(lazy, field, value):
    with pytest.raises(ConfigurationError, match=field):
        QueueWorker(lazy, HANDLERS, **{field: value})


RIGHT: dict[str, list[Any]] = {
    "parallel_count": [1, 1000],
    "prefetch": [0, 50, None],
    "poll_interval": [0.001, 5, timedelta(seconds=2)],
    "lease": [0.5, timedelta(minutes=1)],
    "grace": [0, 0.0, timedelta(0), 3600],
    "cancel_grace": [0, timedelta(seconds=1)],
    "handler_timeout": [0, math.inf, timedelta(hours=1)],
    "max_retry_count": [1, 100],
    "retry_delay": [None, 0, 2.5, timedelta(seconds=3), float],
    "session_isolation": [None, "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"],
    "included_names": [None, [], ("a",), {"a", "b"}, ["a", "a"], HANDLERS.keys()],
    "excluded_names": [None, [], ["a"], ["unknown"], ["a", "b"]],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in RIGHT.items() for value in values])
def test_an_argument_that_works_is_taken(lazy, field, value):
    assert QueueWorker(lazy, HANDLERS, **{field: value}).id is None  # it was made, and not started


@pytest.mark.parametrize("excluded", [[], ["a"]])
def test_included_and_excluded_names_together_are_refused_even_when_empty(lazy, excluded):
    with pytest.raises(ConfigurationError, match="included_names or excluded_names, not both"):
        QueueWorker(lazy, HANDLERS, included_names=[], excluded_names=excluded)


def test_an_included_name_without_a_handler_is_named(lazy):
    with pytest.raises(ConfigurationError, match=r"included_names .* without a handler: x, z"):
        QueueWorker(lazy, HANDLERS, included_names=["z", "a", "x"])


@pytest.mark.parametrize("grace", [-1, math.nan, math.inf, "5"])
async def test_stop_refuses_a_grace_that_means_nothing_and_the_worker_goes_on(engine, grace):
    async with QueueWorker(engine, HANDLERS) as worker:
        with pytest.raises(ConfigurationError, match="grace"):
            await worker.stop(grace=grace)
        assert worker.healthy


def test_options_are_given_by_name(lazy):
    with pytest.raises(TypeError):
        QueueWorker(lazy, HANDLERS, 4)
    with pytest.raises(TypeError, match="paralel_count"):
        QueueWorker(lazy, HANDLERS, paralel_count=4)


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        (None, "NoneType"),
        ("postgresql+asyncpg://user@host/name", "str"),
        (create_engine("sqlite://"), "AsyncEngine"),
        (create_async_engine("sqlite+aiosqlite://"), "sqlite_engine"),
        (create_async_engine("sqlite+aiosqlite:///queue.db"), "sqlite_engine"),
    ],
    ids=["nothing", "a URL", "a sync engine", "SQLite in memory", "another engine of SQLite"],
)
def test_what_is_no_engine_that_a_worker_can_use_is_refused(engine, problem):
    with pytest.raises(ConfigurationError, match=problem):
        QueueWorker(engine, HANDLERS)


def test_another_driver_is_refused_by_name(lazy, monkeypatch):
    monkeypatch.setattr(lazy.dialect, "driver", "psycopg")
    with pytest.raises(ConfigurationError, match=r"postgresql\+asyncpg .* not postgresql\+psycopg"):
        QueueWorker(lazy, HANDLERS)
    monkeypatch.setattr(lazy.dialect, "name", "mysql")
    with pytest.raises(ConfigurationError, match=r"not mysql\+psycopg"):
        QueueWorker(lazy, HANDLERS)


# --- pools ------------------------------------------------------------------------------------------------------------

SERVING: dict[str, dict[str, Any]] = {
    "the default": {},
    "just large enough": {"pool_size": 3, "max_overflow": 0, "pool_timeout": 5},
    "one and an overflow": {"pool_size": 1, "max_overflow": 2, "pool_timeout": 5},
    "unlimited overflow": {"pool_size": 1, "max_overflow": -1},
    "unlimited size": {"pool_size": 0},
    "none": {"poolclass": NullPool},
}


@pytest.mark.parametrize("options", SERVING.values(), ids=SERVING)
async def test_a_pool_that_can_serve_does(database_url, engine, options):
    pooled = engine_for(database_url, **options)
    await add_jobs(engine, [NewJob("a")] * 12)
    counts = await QueueWorker(pooled, HANDLERS, parallel_count=6).drain()
    await pooled.dispose()
    assert counts["completed"] == 12


@pytest.mark.parametrize("options", [{"pool_size": 1, "max_overflow": -1}, {"pool_size": 0}, {"poolclass": NullPool}])
async def test_sessions_of_an_unlimited_pool_are_bounded_by_parallel_count_alone(pg_engine, options):
    pooled, begun = create_async_engine(pg_engine.url, **options), []

    async def hold(event, session, job):
        await session.execute(text("SELECT 1"))
        begun.append(job.id)
        await until(lambda: len(begun) >= 8)

    await add_jobs(pg_engine, [NewJob("hold")] * 8)
    counts = await QueueWorker(pooled, {"hold": hold}, parallel_count=8).drain()
    await pooled.dispose()
    assert counts == {**dict.fromkeys(counts, 0), "completed": 8}  # none of them in a second try


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"pool_size": 1, "max_overflow": 0}, r"has 1 connection.* at least 3.*pool_size=20"),
        ({"pool_size": 1, "max_overflow": 1}, r"has 2 connection.* at least 3.*pool_size=20"),
    ],
)
async def test_a_pool_too_small_to_share_is_refused_and_nothing_is_left(pg_engine, options, numbers):
    pooled = create_async_engine(pg_engine.url, **options)
    with pytest.raises(ConfigurationError, match=numbers):
        await QueueWorker(pooled, HANDLERS, parallel_count=20).start()
    assert pooled.pool.checkedout() == 0
    async with pg_engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM queue_kit_worker")) == 0
    await pooled.dispose()


async def test_a_pool_whose_connection_is_everybodys_is_refused(pg_engine):
    shared = create_async_engine(pg_engine.url, poolclass=StaticPool)
    with pytest.raises(ConfigurationError, match="StaticPool, one connection for all"):
        await QueueWorker(shared, HANDLERS).start()
    await shared.dispose()


async def test_a_pool_smaller_than_parallel_count_is_noted_once_with_its_bound(pg_engine, caplog):
    caplog.set_level("INFO", logger="queue_kit.worker")
    pooled = create_async_engine(pg_engine.url, pool_size=4, max_overflow=1)
    async with QueueWorker(pooled, HANDLERS, parallel_count=10):
        pass
    await pooled.dispose()
    assert [record.message for record in caplog.records if "pool" in record.message] == [
        "3 handlers at most use their session at once: the pool is shared"
    ]


async def test_two_workers_on_one_engine_share_its_bound(pg_engine):
    pooled, holding, most = create_async_engine(pg_engine.url, pool_size=4, max_overflow=0, pool_timeout=5), set(), []
    both = asyncio.Event()

    async def hold(event, session, job):
        await session.execute(text("SELECT 1"))
        holding.add(job.id)
        most.append(len(holding))
        if len(holding) == 2:
            both.set()
        await both.wait()
        await session.execute(text("SELECT pg_sleep(0.01)"))  # time enough for a third one
        async with pooled.connect() as connection:  # the host's, which never waits in vain
            await connection.execute(text("SELECT 1"))
        holding.discard(job.id)

    await add_jobs(pg_engine, [NewJob("hold")] * 24)
    hook = Recorder()
    workers = [QueueWorker(pooled, {"hold": hold}, parallel_count=8, hooks=[hook]) for _ in range(2)]
    async with workers[0], workers[1]:
        await until(lambda: hook.verdicts.count("completed") == 24)
    await pooled.dispose()
    assert max(most) == 2


async def test_on_sqlite_a_pool_of_one_connection_serves(sqlite_path):
    engine = sqlite_engine(sqlite_path, pool_size=1, max_overflow=0, pool_timeout=5)
    await add_jobs(engine, [NewJob("a")] * 3)
    assert (await QueueWorker(engine, HANDLERS, parallel_count=3).drain())["completed"] == 3
    await engine.dispose()
