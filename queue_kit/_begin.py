"""How a handler's transaction begins on PostgreSQL: with its isolation level, with the time its statements have, and
with a guard before its commit.

SQLAlchemy sends BEGIN with the first statement, and each setting would travel as a statement of its own: an eighth of
what a small transaction takes. So BEGIN is sent from here, with the settings in the same message.
"""

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from queue_kit._commits import Commits, GuardedTransaction, MayCommit
from queue_kit._statements import database


def begin(
    connection: Connection,
    *,
    isolation: str | None,
    statement_timeout: int | None,
    commits: Commits,
    may_commit: MayCommit,
) -> None:
    """Begin the transaction of a connection that SQLAlchemy takes for begun, with an isolation level and milliseconds
    for each statement (`None` is what the connection has), and refuse its commit unless `may_commit`."""
    adapter: Any = connection.connection.dbapi_connection
    if _can_begin(adapter):
        transaction = _send_begin(connection, adapter, isolation, statement_timeout)
        adapter._transaction = GuardedTransaction(transaction, may_commit)  # noqa: SLF001
        return
    commits.watch(connection, may_commit)
    if isolation is not None:
        connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
    if statement_timeout is not None:
        connection.execute(database.limit_statements(), {"milliseconds": str(statement_timeout)})


def _can_begin(adapter: Any) -> bool:
    """Whether nothing was sent yet (a listener of the engine may have), and SQLAlchemy and asyncpg note a transaction
    where they did when this was written."""
    driver = adapter.driver_connection
    return (
        getattr(adapter, "_transaction", driver) is None
        and getattr(driver, "_top_xact", driver) is None
        and not (adapter.readonly or adapter.deferrable)
    )


def _send_begin(connection: Connection, adapter: Any, isolation: str | None, statement_timeout: int | None) -> Any:
    """asyncpg's transaction, begun; SQLAlchemy is still to be given it."""
    driver = adapter.driver_connection
    level = isolation or adapter.isolation_level
    words = "BEGIN" if level is None else f"BEGIN ISOLATION LEVEL {level.replace('_', ' ')}"
    if statement_timeout is not None:
        words += f"; SET LOCAL statement_timeout = {statement_timeout:d}"
    try:
        await_only(driver.execute(words))
        transaction = driver.transaction()  # refused when the connection was closed since
    except BaseException as error:
        closed = driver.is_closed()
        connection.invalidate(error)  # nobody knows whether it has begun
        if isinstance(error, Exception) and not isinstance(error, OSError | TimeoutError):
            raise DBAPIError(words, None, error, connection_invalidated=closed) from error
        raise
    transaction._state = type(transaction._state).STARTED  # noqa: SLF001 - there is no public way to say so
    driver._top_xact = transaction  # noqa: SLF001
    if hasattr(adapter, "_started"):  # SQLAlchemy 2.0
        adapter._started = True  # noqa: SLF001
    return transaction
