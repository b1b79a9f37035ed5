"""The dashboard's own way to the database: few connections and short statements, so that looking never slows the queue.

The pool is a clone of the engine's, as a worker's is; it is closed when the engine is disposed of.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import _sqlite
from queue_kit._clone import clone_of
from queue_kit._statements import database
from queue_kit.errors import ConfigurationError

CONNECTIONS = 2
"""Pages that are read at the same time. Further ones wait for their turn."""

PATIENCE = 5.0
"""Seconds that a page waits for its turn and its connection, and that a statement may take (PostgreSQL)."""

CUT = PATIENCE + 1
"""Seconds after which the connection of a transaction is cut: a server that could would have ended it (PostgreSQL)."""


class Pool:
    """Transactions on a few connections. A statement that takes too long is ended by the server (PostgreSQL)."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._embedded = engine.dialect.name == "sqlite"
        if self._embedded and not _sqlite.is_safe(engine):
            raise ConfigurationError("on SQLite the dashboard takes an engine of sqlite_engine(path)")
        own = clone_of(engine)
        if self._embedded:
            self._writing = own
            self._reading = own.execution_options(queue_kit_readonly=True)
        else:
            self._writing = own.execution_options(isolation_level="READ COMMITTED")
            self._reading = self._writing.execution_options(postgresql_readonly=True)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        event.listen(engine.sync_engine, "engine_disposed", lambda _engine: own.sync_engine.dispose())

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A transaction that only reads. Raises `TimeoutError` when no turn comes."""
        async with self._session(self._reading) as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is committed at the end. Raises `TimeoutError` when no turn comes."""
        async with self._session(self._writing) as session:
            yield session
            await session.commit()

    @asynccontextmanager
    async def _session(self, engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
        now = asyncio.get_running_loop().time()
        async with asyncio.timeout_at(now + PATIENCE):
            await self._turns.acquire()
        try:
            with ExitStack() as leaving:
                async with AsyncSession(engine, expire_on_commit=False) as session:
                    if not self._embedded:
                        async with asyncio.timeout_at(now + PATIENCE):
                            connection = await (await session.connection()).get_raw_connection()
                        leaving.callback(_cut_at(now + CUT, connection.driver_connection).cancel)
                        limit = {"milliseconds": str(int(PATIENCE * 1000))}
                        await session.execute(database.limit_statements(), limit)
                    yield session
        finally:
            self._turns.release()


def _cut_at(when: float, connection: Any) -> asyncio.TimerHandle:
    """End a connection for good at an instant. What waits for it then fails at once, where a polite end of a statement
    or a connection would wait for the server as well."""
    return asyncio.get_running_loop().call_at(when, connection.terminate)
