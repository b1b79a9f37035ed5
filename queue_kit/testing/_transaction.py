"""The transaction that a test holds: how it begins, how others join it, and a worker's statements inside of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, Executable, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from queue_kit._store import Store
from queue_kit._transactions import Transactions

T = TypeVar("T")

Transaction: TypeAlias = AsyncSession | AsyncConnection

LEASE = 30.0
"""Seconds; nobody renews it here, since a job is settled before the next one is claimed."""

_MARK = "queue_kit_testing"
"""A savepoint at the beginning of a transaction that is to be rolled back."""


@asynccontextmanager
async def rolled_back(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection whose transaction is rolled back in the end, whatever was committed inside of it.

    It is in a savepoint already, so that a plain `AsyncSession(connection)` commits to, and rolls back to, a savepoint
    of its own: that is SQLAlchemy's default for a connection that is in one. Raises `AssertionError` in the end when
    something has committed or rolled back the connection itself, by its methods or by sending the text `COMMIT`.

    >>> async def test_order(engine):
    ...     async with rolled_back(engine) as connection, AsyncSession(connection) as session:
    ...         await add_job(session, "email.send")
    ...         await session.commit()  # to the savepoint
    """
    async with engine.connect() as connection:
        transaction = await connection.begin()
        await connection.exec_driver_sql(f"SAVEPOINT {_MARK}")
        await connection.begin_nested()
        try:
            yield connection
            if not (transaction.is_active and await _is_marked(connection)):
                raise AssertionError(
                    "the transaction that was to be rolled back is over: something has called commit() or rollback() "
                    "on the connection itself, not on a session, or has sent the text COMMIT or ROLLBACK; what was "
                    "committed is still there"
                )
        finally:
            await connection.rollback()


async def _is_marked(connection: AsyncConnection) -> bool:
    """Whether it is in the transaction that the mark was set in: SQLAlchemy does not see what a text has ended."""
    try:
        await connection.exec_driver_sql(f"ROLLBACK TO SAVEPOINT {_MARK}")
    except DBAPIError:
        return False
    return True


async def joined(db: Transaction, caller: str) -> AsyncConnection:
    """The connection of the caller's transaction, with what their session has not flushed yet."""
    if isinstance(db, AsyncSession):
        await db.flush()
        return await db.connection()
    if isinstance(db, AsyncConnection):
        if not db.in_transaction():
            await db.begin()  # the caller's, as with any statement of theirs: they end it
        return db
    raise TypeError(
        f"{caller}() works in your transaction: give it an AsyncSession or an AsyncConnection, not {type(db).__name__}"
    )


class JoinedTransactions(Transactions):
    """A worker's transactions in somebody else's, each in a savepoint of its own."""

    def __init__(self, connection: AsyncConnection) -> None:
        # Nobody else is on this connection, so whoever comes to the gate has the turn.
        super().__init__(connection.engine, gate=asyncio.Semaphore(1), lease=LEASE)
        self._connection = connection

    async def read(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """The rows of a statement that changes nothing."""
        return await self.write(statement, parameters)

    async def write(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """The rows that a statement returns."""

        def write(connection: Connection) -> Sequence[Row[Any]]:
            result = connection.execute(statement, parameters)
            return result.all() if result.returns_rows else ()

        return await self.as_one(write)

    async def as_one(self, work: Callable[[Connection], T]) -> T:
        """Do what takes several statements in one savepoint."""
        async with self._connection.begin_nested():
            return await self._connection.run_sync(work)


def joined_store(connection: AsyncConnection, names: Iterable[str]) -> Store:
    """A worker's statements in somebody else's transaction."""
    return Store(
        JoinedTransactions(connection),
        worker_id=uuid4(),
        names=names,
        lease=LEASE,
        delete_completed=False,
        delete_failed=False,
    )
