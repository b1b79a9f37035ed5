"""pytest's plugin `queue_kit`: a migrated database and a rolled-back session for each test that asks for one.

It stands outside of the package, since pytest imports it at every start: what a test does not ask for is not imported,
least of all SQLAlchemy. The substance is in `queue_kit.testing`; every name begins with `queue_kit`.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest


def async_fixture(function: Callable[..., AsyncIterator[Any]]) -> object:
    """A fixture for the plugin that runs the async tests: pytest-asyncio, or anyio's, which takes pytest's own."""
    try:
        import pytest_asyncio
    except ModuleNotFoundError:
        return pytest.fixture(function)
    return pytest_asyncio.fixture(function)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the server's URL."""
    parser.getgroup("queue_kit", "queue_kit").addoption(
        "--queue-kit-server",
        metavar="URL",
        help="PostgreSQL server on which the tests' databases are made and dropped: postgresql://user@host/postgres "
        "(default: SQLite files)",
    )


@pytest.fixture(scope="session")
def queue_kit_server(request: pytest.FixtureRequest) -> str | None:
    """The URL of the PostgreSQL server for the tests' databases, `None` for SQLite: what `--queue-kit-server` says.
    Override it to take it from elsewhere."""
    server: str | None = request.config.getoption("--queue-kit-server")
    return server


@pytest.fixture(scope="session")
def queue_kit_prepare() -> Any:
    """Override it to return an async function of an engine, which makes the application's tables in the template."""

    async def nothing(_engine: Any) -> None: ...

    return nothing


@pytest.fixture(scope="session")
def _queue_kit_databases(
    queue_kit_server: str | None, queue_kit_prepare: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The template of this process, from which databases are copied."""
    from queue_kit.testing._databases import Databases

    databases = Databases(queue_kit_server, tmp_path_factory.mktemp("queue_kit"), queue_kit_prepare)
    with databases.open():
        yield databases


@pytest.fixture(scope="session")
def _queue_kit_shared_database(_queue_kit_databases: Any) -> Iterator[Any]:
    """The one database of this process in which every test is rolled back."""
    with _queue_kit_databases.shared() as shared:
        yield shared


@pytest.fixture
def queue_kit_database_url(_queue_kit_databases: Any) -> Iterator[str]:
    """The URL of a migrated database of the test's own."""
    with _queue_kit_databases.fresh() as url:
        yield url


@pytest.fixture
def queue_kit_engine(queue_kit_database_url: str) -> Any:
    """An `AsyncEngine` on `queue_kit_database_url`, where commits are real. It has no pool."""
    from queue_kit.testing._databases import engine_for

    return engine_for(queue_kit_database_url)


@async_fixture
async def queue_kit_connection(_queue_kit_shared_database: Any) -> AsyncIterator[Any]:
    """An `AsyncConnection` whose transaction is rolled back after the test, as by `rolled_back`. Its database is that
    of the process: to roll back takes a hundredth of the time that a database takes. A test that has ended the
    transaction gets an error, and the tests after it another database."""
    from queue_kit.testing import rolled_back
    from queue_kit.testing._databases import engine_for

    try:
        async with rolled_back(engine_for(_queue_kit_shared_database.url)) as connection:
            yield connection
    except BaseException:
        _queue_kit_shared_database.spoil()
        raise


@async_fixture
async def queue_kit_session(queue_kit_connection: Any) -> AsyncIterator[Any]:
    """An `AsyncSession` on `queue_kit_connection`: its commits are savepoints."""
    from sqlalchemy.ext.asyncio import AsyncSession

    async with AsyncSession(queue_kit_connection, expire_on_commit=False) as session:
        yield session
