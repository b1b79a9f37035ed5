"""The embedded database: an engine with the settings without which SQLite loses updates or leaks locks.

Transactions begin IMMEDIATE, so that none has to upgrade its lock from a snapshot that has grown old; readers do not
block in WAL mode. A worker refuses any other SQLite engine.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Literal, Self

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import PoolResetState
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from queue_kit.errors import ConfigurationError

OLDEST = (3, 35)
"""The first version with RETURNING."""


class _Cursor(sqlite3.Cursor):
    """Lets go of a statement that failed, in the driver's thread. It would live as long as its traceback, and whoever
    collects that garbage waits until the connection's next statement has ended: mostly the event loop."""

    def execute(self, *arguments: Any) -> Self:
        try:
            return super().execute(*arguments)
        except BaseException:
            self.close()
            raise

    def executemany(self, *arguments: Any) -> Self:
        try:
            return super().executemany(*arguments)
        except BaseException:
            self.close()
            raise


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)


def sqlite_engine(
    path: str | os.PathLike[str],
    *,
    busy_timeout: float = 10.0,
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
    **engine_options: Any,
) -> AsyncEngine:
    """An engine on an SQLite file, fit for a queue and for the rest of an application.

    `busy_timeout` is how many seconds a transaction waits for another process. With `synchronous="NORMAL"` a commit
    survives the death of the process, though not always a power failure; `"FULL"` survives both and is slower.
    Transactions take the lock of the one writer when they begin; those of
    `engine.execution_options(queue_kit_readonly=True)` do not, can only read, and wait for nobody.
    `engine_options` go to `create_async_engine`. Raises `ConfigurationError` when this cannot work here.

    >>> engine = sqlite_engine("app.db")
    """
    file = os.fspath(path)
    if not file or file == ":memory:" or file.startswith("file:"):
        raise ConfigurationError(f"sqlite_engine takes the path of a file, not {file!r}: a queue outlives its process")
    if "://" in file:  # not shown: it may hold a password
        raise ConfigurationError("sqlite_engine takes the path of a file, not a URL; engine_from_url(...) does")
    if not Path(file).parent.is_dir():
        raise ConfigurationError(f"the folder of {file!r} does not exist; make it first")
    if sqlite3.sqlite_version_info < OLDEST:
        raise ConfigurationError(f"SQLite {sqlite3.sqlite_version} is too old, 3.35 is needed")
    if synchronous not in ("NORMAL", "FULL"):
        raise ConfigurationError(f"synchronous is 'NORMAL' or 'FULL', not {synchronous!r}")
    url = URL.create("sqlite+aiosqlite", database=file)
    try:
        options = {"pool_reset_on_return": None, **engine_options}
        engine = create_async_engine(url, connect_args={"timeout": busy_timeout, "factory": _Connection}, **options)
    except ModuleNotFoundError as error:
        raise ConfigurationError("SQLite needs aiosqlite: pip install 'queue-kit[sqlite]'") from error

    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # or the driver would begin transactions of its own
        _write_ahead(connection, busy_timeout)
        cursor = connection.cursor()
        for pragma in (f"synchronous={synchronous}", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "reset", _reset)
    event.listen(engine.sync_engine, "close", _roll_back)
    prepare(engine.sync_engine)
    return engine


def _write_ahead(connection: Any, patience: float) -> None:
    """Keep the file in WAL mode. SQLite waits for nobody when several set that on a new file at once."""
    deadline = time.monotonic() + patience
    while True:
        cursor = connection.cursor()
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        else:
            return
        finally:
            cursor.close()
        await_only(asyncio.sleep(0.01))


def prepare(engine: Engine) -> None:
    """Make an engine begin its transactions as a queue needs it; its pool comes with the rest."""
    event.listen(engine, "begin", _begin)


def is_safe(engine: AsyncEngine) -> bool:
    """Whether an engine was made by `sqlite_engine`."""
    return event.contains(engine.sync_engine, "begin", _begin)


def _begin(connection: Connection) -> None:
    reading = connection.get_execution_options().get("queue_kit_readonly")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _reset(connection: Any, _record: object, state: PoolResetState) -> None:
    # The pool's own way is to roll back behind every commit as well. A cancellation that came just then was reported as
    # an error with a traceback, and cost the connection.
    if state.asyncio_safe and connection.driver_connection.in_transaction:
        connection.rollback()


def _roll_back(connection: Any, _record: object) -> None:
    # SQLite closes for real when the last statement is gone, and one that was cut short by a cancellation lives as long
    # as its traceback: until then the file would stay locked.
    if in_greenlet():
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await_only(asyncio.shield(connection.driver_connection.rollback()))
