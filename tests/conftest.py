"""Fixtures: one server and one migrated template a run, one copy of it a test, on PostgreSQL and on SQLite alike.

The server is the one of `QUEUE_KIT_TEST_DATABASE_URL`, else one of our own. It starts when the first test needs it;
under pytest-xdist the controller starts it for all workers.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import hypothesis
import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import migrate, sqlite_engine
from tests.postgres import postgres

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; every child would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Its limits of time are about the machine: on a busy one an example, or making it, takes as long as it takes. A fixture
# that examples share is a clock, which may go on from one to the next.
hypothesis.settings.register_profile(
    "queue_kit",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("queue_kit")


class Server(NamedTuple):
    """Where the tests' databases are made. All of their names begin with `prefix`, so a run finds its own."""

    url: str
    prefix: str

    @property
    def template(self) -> str:
        return f"{self.prefix}_template"

    def database(self, name: str) -> URL:
        return make_url(self.url).set(database=name)

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[asyncpg.Connection]:
        dsn = make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(dsn)
        try:
            yield connection
        finally:
            await connection.close()

    async def prepare(self) -> None:
        async with self.admin() as admin:
            await admin.execute(f"CREATE DATABASE {self.template}")
            await _migrate(create_async_engine(self.database(self.template)))
            # A database that somebody is connected to cannot be copied.
            await admin.execute(f"ALTER DATABASE {self.template} WITH ALLOW_CONNECTIONS false")

    async def clear(self) -> None:
        async with self.admin() as admin:
            for row in await admin.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", self.prefix):
                await admin.execute(f"DROP DATABASE {row['datname']} WITH (FORCE)")

    @contextlib.asynccontextmanager
    async def fresh(self, template: str) -> AsyncIterator[str]:
        """A database of its own, copied from the template; yields its URL."""
        name = f"{self.prefix}_{uuid.uuid4().hex[:12]}"
        async with self.admin() as admin:
            await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            try:
                yield self.database(name).render_as_string(hide_password=False)
            finally:
                await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


_server = pytest.StashKey[Server]()
_cleanup = pytest.StashKey[contextlib.ExitStack]()


def _serve(config: pytest.Config) -> Server:
    if _server not in config.stash:
        config.stash[_cleanup] = stack = contextlib.ExitStack()
        url = os.environ.get("QUEUE_KIT_TEST_DATABASE_URL") or stack.enter_context(postgres())
        config.stash[_server] = server = Server(url, f"qk_{uuid.uuid4().hex[:8]}")
        stack.callback(lambda: asyncio.run(server.clear()))
        asyncio.run(server.prepare())
    return config.stash[_server]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the server to a worker of pytest-xdist."""
    node.workerinput["server"] = tuple(_serve(node.config))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if _cleanup in config.stash:
        config.stash[_cleanup].close()


async def _migrate(engine: AsyncEngine) -> None:
    await migrate.upgrade(engine)
    await engine.dispose()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Server:
    """The PostgreSQL server of this run."""
    workerinput = getattr(request.config, "workerinput", None)
    return Server(*workerinput["server"]) if workerinput else _serve(request.config)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    asyncio.run(_migrate(sqlite_engine(path)))
    return path


@pytest.fixture
async def postgres_url(server: Server) -> AsyncIterator[str]:
    """The URL of a freshly migrated PostgreSQL database."""
    async with server.fresh(server.template) as url:
        yield url


@pytest.fixture
async def empty_postgres_url(server: Server) -> AsyncIterator[str]:
    """The URL of an empty PostgreSQL database."""
    async with server.fresh("template0") as url:
        yield url


@pytest.fixture
async def pg_engine(postgres_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a freshly migrated PostgreSQL database."""
    engine = create_async_engine(postgres_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def sqlite_path(sqlite_template: Path, tmp_path: Path) -> Path:
    """The file of a freshly migrated SQLite database."""
    return Path(shutil.copy(sqlite_template, tmp_path / "queue.db"))


@pytest.fixture
async def embedded_engine(sqlite_path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine on a freshly migrated SQLite file."""
    engine = sqlite_engine(sqlite_path)
    yield engine
    await engine.dispose()


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest) -> Server | Path:
    """What makes a test run on PostgreSQL and on SQLite; only what it needs is started."""
    return request.getfixturevalue("server" if request.param == "postgresql" else "sqlite_path")


@pytest.fixture
async def database_url(database: Server | Path) -> AsyncIterator[str]:
    """The URL of the database that `engine` is on, for other processes."""
    if isinstance(database, Path):
        yield sqlite_url(database)
    else:
        async with database.fresh(database.template) as url:
            yield url


@pytest.fixture
async def empty_database_url(database: Server | Path, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database without any table."""
    if isinstance(database, Path):
        yield sqlite_url(tmp_path / "empty.db")
    else:
        async with database.fresh("template0") as url:
            yield url


@pytest.fixture
async def empty_engine(empty_database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a database without any table."""
    made = engine_for(empty_database_url)
    yield made
    await made.dispose()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a freshly migrated database: each test runs on PostgreSQL and on SQLite."""
    made = engine_for(database_url)
    yield made
    await made.dispose()


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return URL.create("sqlite+aiosqlite", database=str(path)).render_as_string()


def engine_for(url: str, **options: Any) -> AsyncEngine:
    """An engine on a test's database."""
    if url.startswith("sqlite"):
        return sqlite_engine(str(make_url(url).database), **options)
    return create_async_engine(url, **options)
