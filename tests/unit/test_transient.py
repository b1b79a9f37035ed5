"""Which errors pass by themselves, class by class as the drivers and SQLAlchemy raise them."""

import asyncio
import socket
import sqlite3
import ssl
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection, PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.exc import DBAPIError, InvalidRequestError, PendingRollbackError

from queue_kit import LeaseLost
from queue_kit._transient import is_connection_lost, is_server_trouble, is_transient

POSTGRES = PGDialect_asyncpg(dbapi=PGDialect_asyncpg.import_dbapi())
SQLITE = SQLiteDialect_aiosqlite(dbapi=SQLiteDialect_aiosqlite.import_dbapi())


def postgres(error: Exception, *, closed: bool = False) -> DBAPIError:
    """What a statement raises on PostgreSQL when the driver raised this, as SQLAlchemy's own dialect turns it."""
    adapted: Any = AsyncAdapt_asyncpg_connection.__new__(AsyncAdapt_asyncpg_connection)
    adapted.dbapi, adapted._connection = POSTGRES.dbapi, SimpleNamespace(is_closed=lambda: closed)
    with pytest.raises(POSTGRES.dbapi.Error) as raised:
        adapted._handle_exception(error)
    return wrapped(raised.value, POSTGRES, closed=closed)


def fatal(state: str) -> Any:
    """What asyncpg makes of a connection that the server refuses."""
    return asyncpg.PostgresError.new({"S": "TÖDLICH", "V": "FATAL", "C": state, "M": "not you"})


def wrapped(error: Exception, by: Any, *, closed: bool = False) -> Any:
    return DBAPIError.instance("SELECT 1", {}, error, by.dbapi.Error, connection_invalidated=closed, dialect=by)


def sqlite(message: str, code: int, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> DBAPIError:
    """What a statement raises on SQLite."""
    error = kind(message)
    error.sqlite_errorcode = code
    return wrapped(error, SQLITE)


# The connection broke, so nobody knows what became of the statement.
LOST = {
    "nobody listens": ConnectionRefusedError(111, "Connect call failed"),
    "cut while it connects": ConnectionResetError(104, "Connection reset by peer"),
    "gone before the greeting": ConnectionError("unexpected connection_lost() call"),
    "no such host": socket.gaierror(-2, "Name or service not known"),
    "TLS breaks off": ssl.SSLError(1, "[SSL] record layer failure"),
    "no answer in time": TimeoutError(),
    "starting up or in recovery": postgres(asyncpg.CannotConnectNowError("the database system is starting up")),
    "shutting down": postgres(asyncpg.AdminShutdownError("terminating connection due to administrator command")),
    "crashed": postgres(asyncpg.CrashShutdownError("terminating connection because of crash")),
    "database dropped": postgres(asyncpg.DatabaseDroppedError("the database was dropped")),
    "closed in the middle": postgres(asyncpg.ConnectionDoesNotExistError("closed in the middle of operation")),
    "connection failure": postgres(asyncpg.ConnectionFailureError("connection failure")),
    "stale in the pool": postgres(asyncpg.InterfaceError("connection is closed"), closed=True),
    "stale in the pool, unnoticed": postgres(asyncpg.InterfaceError("cannot perform: connection is closed")),
    "closed while it was set up": asyncpg.InterfaceError("connection is closed"),
    "shut down while it was set up": asyncpg.AdminShutdownError("terminating connection"),
    "protocol race": postgres(asyncpg.InternalClientError("got result for unknown protocol state 3")),
    "whatever closed it": postgres(asyncpg.DataCorruptedError("invalid page"), closed=True),
}

# The database answered, and may answer otherwise a moment later.
PASSING = {
    "a database that takes no connections": fatal("55000"),
    "a role that may not connect": fatal("42501"),
    "the same, as SQLAlchemy turns it": postgres(fatal("42501")),
    "no connection left": asyncpg.TooManyConnectionsError("sorry, too many clients already"),
    "read-only standby": postgres(asyncpg.ReadOnlySQLTransactionError("cannot execute UPDATE")),
    "serialization failure": postgres(asyncpg.SerializationError("could not serialize access")),
    "deadlock": postgres(asyncpg.DeadlockDetectedError("deadlock detected")),
    "lock timeout": postgres(asyncpg.LockNotAvailableError("canceling statement due to lock timeout")),
    "statement timeout": postgres(asyncpg.QueryCanceledError("canceling statement due to statement timeout")),
    "too many connections": postgres(asyncpg.TooManyConnectionsError("sorry, too many clients already")),
    "disk full": postgres(asyncpg.DiskFullError("could not extend file")),
    "out of memory": postgres(asyncpg.OutOfMemoryError("out of memory")),
    "input/output error": postgres(asyncpg.PostgresIOError("could not read block")),
    "database missing": postgres(asyncpg.InvalidCatalogNameError("database does not exist")),
    "the transaction died before": PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
    "SQLite busy": sqlite("database is locked", sqlite3.SQLITE_BUSY),
    "SQLite table locked": sqlite("database table is locked", sqlite3.SQLITE_LOCKED),
    "SQLite disk full": sqlite("database or disk is full", sqlite3.SQLITE_FULL),
    "SQLite input/output error": sqlite("disk I/O error", sqlite3.SQLITE_IOERR),
    "SQLite interrupted": sqlite("interrupted", sqlite3.SQLITE_INTERRUPT),
    "SQLite file out of reach": sqlite("unable to open database file", sqlite3.SQLITE_CANTOPEN),
    "SQLite read-only": sqlite("attempt to write a readonly database", sqlite3.SQLITE_READONLY),
}

# Trying again ends the same way until somebody mends something.
LASTING = {
    "unique key": postgres(asyncpg.UniqueViolationError("duplicate key value")),
    "check": postgres(asyncpg.CheckViolationError("new row violates check constraint")),
    "syntax": postgres(asyncpg.PostgresSyntaxError("syntax error at or near")),
    "table missing": postgres(asyncpg.UndefinedTableError("relation does not exist")),
    "state of an object": postgres(asyncpg.ObjectNotInPrerequisiteStateError("currval is not yet defined")),
    "not allowed": postgres(asyncpg.InsufficientPrivilegeError("permission denied")),
    "number out of range": postgres(asyncpg.NumericValueOutOfRangeError("integer out of range")),
    "raised by a trigger": postgres(asyncpg.RaiseError("not today")),
    "a parameter that the driver cannot send": postgres(asyncpg.DataError("invalid input for query argument $1")),
    "SQLite constraint": sqlite("UNIQUE failed", sqlite3.SQLITE_CONSTRAINT, sqlite3.IntegrityError),
    "SQLite table missing": sqlite("no such table: queue", sqlite3.SQLITE_ERROR),
    "SQLite parameter": sqlite("type 'object' is not supported", sqlite3.SQLITE_ERROR, sqlite3.ProgrammingError),
    "SQLAlchemy misused": InvalidRequestError("A transaction is already begun on this Session."),
    "of the handler": ValueError("invalid transaction"),
    "lease lost": LeaseLost("not ours"),
    "cancelled": asyncio.CancelledError(),
}


@pytest.mark.parametrize("error", LOST.values(), ids=LOST.keys())
def test_a_lost_connection_is_told_by_what_broke_it(error):
    assert is_connection_lost(error)
    assert is_transient(error)


@pytest.mark.parametrize("error", PASSING.values(), ids=PASSING.keys())
def test_what_the_database_answered_and_may_take_back_is_transient_but_not_ambiguous(error):
    assert is_transient(error)
    assert not is_connection_lost(error)


@pytest.mark.parametrize("error", LASTING.values(), ids=LASTING.keys())
def test_what_lasts_is_not_tried_again(error):
    assert not is_transient(error)
    assert not is_connection_lost(error)


@pytest.mark.parametrize(
    "name", ["read-only standby", "too many connections", "disk full", "out of memory", "SQLite disk full"]
)
def test_what_a_server_cannot_do_for_anybody_is_its_trouble(name):
    assert is_server_trouble(PASSING[name])


@pytest.mark.parametrize(
    "error",
    [
        postgres(asyncpg.ConfigurationLimitExceededError("temporary file size exceeds temp_file_limit")),
        postgres(asyncpg.UndefinedFileError("could not open file for reading")),
        postgres(asyncpg.DuplicateFileError("could not create file")),
        PASSING["statement timeout"],
        PASSING["deadlock"],
        LASTING["unique key"],
        LASTING["of the handler"],
    ],
    ids=str,
)
def test_what_only_this_statement_cannot_have_is_not(error):
    assert not is_server_trouble(error)
