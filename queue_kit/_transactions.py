"""A worker's short transactions, on a small private pool, each with a bound on how long the database has to answer.

The pool is a clone of the engine's, so the host application never lacks a connection for it. On SQLite every writing
transaction waits for its turn at the gate that handlers' sessions share.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from queue_kit._clone import clone_of
from queue_kit._error_record import hide_values
from queue_kit._patience import Patience
from queue_kit._transient import READ_ONLY, sqlstate

T = TypeVar("T")


class Transactions:
    """Runs statements, and knows none. Errors are the driver's, or a `TimeoutError` for no answer."""

    def __init__(self, engine: AsyncEngine, *, gate: asyncio.Semaphore, lease: float) -> None:
        self.embedded = engine.dialect.name == "sqlite"
        self._engine = clone_of(engine)
        if self.embedded:
            self._single = self._transactions = self._engine
            self._reading = self._engine.execution_options(queue_kit_readonly=True)
        else:
            self._single = self._reading = self._engine.execution_options(isolation_level="AUTOCOMMIT")
            self._transactions = self._engine.execution_options(isolation_level="READ COMMITTED")
        self._gate = gate
        self.round_trip = 0.0 if self.embedded else math.inf
        """Seconds that the quickest statements of late took: how far away the database is (0 when embedded)."""
        self._patience = min(max(lease / 3, 1.0), 10.0)

    @property
    def engine(self) -> AsyncEngine:
        """The private engine, for whatever must connect as the worker does."""
        return self._engine

    async def dispose(self) -> None:
        """Close the private pool."""
        await self._engine.dispose()

    async def read(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """The rows of a statement that changes nothing."""
        return await self._bounded(lambda: self._execute(self._reading, statement, parameters, commits=False))

    async def write(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """Commit one statement; the rows that it returns."""
        return await self._turn(lambda: self._execute(self._single, statement, parameters, commits=True))

    async def _execute(
        self, engine: AsyncEngine, statement: Executable, parameters: Mapping[str, Any], *, commits: bool
    ) -> Sequence[Row[Any]]:
        """A statement alone. An `AsyncConnection` would change greenlets to begin, to execute, to commit and to close:
        a third (115 of 310 us) of what a worker computes for one."""
        connect = engine.sync_engine.begin if commits else engine.sync_engine.connect

        def execute() -> Sequence[Row[Any]]:
            with connect() as connection:
                result = connection.execute(statement, parameters)
                return result.all() if result.returns_rows else ()

        return await greenlet_spawn(execute)

    async def as_one(self, work: Callable[[Connection], T]) -> T:
        """Do what takes several statements in one transaction."""

        async def transaction() -> T:
            async with self._transactions.begin() as connection:
                return await connection.run_sync(work)

        return await self._turn(transaction)

    async def _turn(self, transaction: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a writing transaction, on SQLite when its turn has come."""
        if not self.embedded:
            return await self._bounded(transaction)
        async with self._gate:
            return await self._bounded(transaction)

    async def _bounded(self, transaction: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self.embedded:
            return await self._whole(transaction)
        began = time.monotonic()
        try:
            # Twice: a cancelled ping of the pool goes on to roll back, on a connection that may never answer.
            async with Patience(self._patience + 1.0), Patience(self._patience):
                result = await transaction()
        except TimeoutError as error:  # it would show in the log without a word
            self._renew_pool()  # what else is in it is as old, and each would take as long to be given up
            raise TimeoutError(f"no answer within {self._patience:g} s") from error
        except DBAPIError as error:
            hide_values(error)  # whoever logs it
            if sqlstate(error) == READ_ONLY:
                self._renew_pool()  # the server is a standby now: its connections live, but are of no use
            raise
        self.round_trip = min(time.monotonic() - began, 1.01 * self.round_trip)
        return result

    def _renew_pool(self) -> None:
        self._engine.sync_engine.pool._invalidate_time = time.time()  # noqa: SLF001 - there is no public way

    async def _whole(self, transaction: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """A cancelled SQLite statement would run on, with its lock, and its connection would be lost: so it is let come
        to its end, which `busy_timeout` bounds."""
        task = asyncio.create_task(transaction(), name="queue_kit: SQLite transaction")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():
                with suppress(asyncio.CancelledError):  # however often
                    await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # nobody asks for it any more, and asyncio would report that
            raise
