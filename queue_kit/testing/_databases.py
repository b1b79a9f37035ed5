"""Databases for tests, which the pytest plugin hands out: a template is migrated once a process, and copied for a test.

On SQLite they are files. On a PostgreSQL server they are databases with names of their own, so that processes of
pytest-xdist, and other people's runs, never meet; all of them are dropped.
"""

import asyncio
import inspect
import itertools
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from sqlalchemy import NullPool, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import migrate
from queue_kit._sqlite import sqlite_engine
from queue_kit.errors import ConfigurationError

Prepare: TypeAlias = Callable[[AsyncEngine], Awaitable[None]]

PREFIX = "queue_kit_test"


class Databases:
    """Makes databases that hold the queue's tables and, by `prepare`, the application's: on `server` (a URL; the
    database that it names is only connected to), or as files in `folder`."""

    def __init__(self, server: str | None, folder: Path, prepare: Prepare) -> None:
        self._server = None if server is None else _server_url(server)
        self._folder = folder
        self._prepare = prepare
        self._name = f"{PREFIX}_{uuid4().hex[:12]}"
        self._numbers = itertools.count(1)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Have a template for as long as this lasts. Safe where an event loop runs, and where none does."""
        template = self._place("template")
        try:
            _in_a_thread(self._make_template(template))
            yield
        finally:
            _in_a_thread(self._remove(template))

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """A copy of the template; yields its URL."""
        place = self._place(str(next(self._numbers)))
        try:
            _in_a_thread(self._copy(place))
            yield self._url(place)
        finally:
            _in_a_thread(self._remove(place))

    @contextmanager
    def shared(self) -> Iterator["SharedDatabase"]:
        """One copy for all tests that are rolled back."""
        with ExitStack() as copy:
            yield SharedDatabase(lambda: copy.enter_context(self.fresh()), copy.close)

    def _place(self, what: str) -> str:
        return f"{self._name}_{what}"

    def _file(self, place: str) -> Path:
        return self._folder / f"{place}.db"

    def _url(self, place: str) -> str:
        if self._server is None:
            return f"sqlite+aiosqlite:///{self._file(place)}"
        return make_url(self._server).set(database=place).render_as_string(hide_password=False)

    async def _make_template(self, place: str) -> None:
        if self._server is not None:
            await self._administer(f"CREATE DATABASE {place}")
        engine = engine_for(self._url(place))
        await migrate.upgrade(engine)
        await self._prepare_tables(engine)
        await engine.dispose()
        if self._server is not None:  # a database that somebody is connected to cannot be copied
            await self._administer(f"ALTER DATABASE {place} WITH ALLOW_CONNECTIONS false")

    async def _prepare_tables(self, engine: AsyncEngine) -> None:
        making = self._prepare(engine) if callable(self._prepare) else None
        if not inspect.isawaitable(making):
            raise ConfigurationError("the fixture queue_kit_prepare must return an async function of an engine")
        await making

    async def _copy(self, place: str) -> None:
        template = self._place("template")
        if self._server is None:
            shutil.copy(self._file(template), self._file(place))
        else:
            await self._administer(f"CREATE DATABASE {place} TEMPLATE {template}")

    async def _remove(self, place: str) -> None:
        if self._server is None:
            for file in self._folder.glob(f"{place}.db*"):
                file.unlink()
        else:
            await self._administer(f"DROP DATABASE IF EXISTS {place} WITH (FORCE)")

    async def _administer(self, command: str) -> None:
        assert self._server is not None
        engine = create_async_engine(self._server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.exec_driver_sql(command)


class SharedDatabase:
    """The database of tests that are rolled back; another one after a test that was not."""

    def __init__(self, make: Callable[[], str], drop: Callable[[], None]) -> None:
        self._make, self._drop = make, drop
        self._url: str | None = None

    @property
    def url(self) -> str:
        """Where it is; made when first asked for."""
        if self._url is None:
            self._url = self._make()
        return self._url

    def spoil(self) -> None:
        """Drop it: something was committed to it."""
        self._url = None
        self._drop()


def engine_for(url: str) -> AsyncEngine:
    """An engine without a pool: it keeps no connection, so there is nothing to dispose of in the test's event loop."""
    if url.startswith("sqlite"):
        return sqlite_engine(str(make_url(url).database), poolclass=NullPool)
    return create_async_engine(url, poolclass=NullPool)


def _server_url(server: str) -> str:
    try:
        url = make_url(server)
    except ArgumentError:
        raise ConfigurationError("the server is no database URL; write postgresql://user@host/postgres") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(
            f"tests make their databases on a PostgreSQL server, not on {url.get_backend_name()}; "
            "for SQLite name no server"
        )
    return url.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def _in_a_thread(work: Coroutine[Any, Any, None]) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()
