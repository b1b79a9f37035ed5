"""Which database errors pass by themselves. Judged by SQLSTATE and by what the driver raises raw, since the same outage
shows as five exception classes, and one class hides both an outage and a mistake."""

import sqlite3

from sqlalchemy.exc import DBAPIError, InvalidRequestError

_CLASSES = ("08", "28", "53", "57P", "58")
"""Connection trouble, a password that was changed on one side first, lack of resources, shutdown and start-up, system
errors."""
READ_ONLY = "25006"
LOCK_NOT_AVAILABLE = "55P03"
DEADLOCK = "40P01"
_STATES = {READ_ONLY, "40001", DEADLOCK, LOCK_NOT_AVAILABLE, "57014", "3D000"}
"""Read-only server, serialization, deadlock, lock timeout, statement timeout, database missing (a failover)."""
_OF_THE_STATEMENT = {"53400", "58P01", "58P02"}
"""A limit on what one session may take, and files that a statement names: others are served all the same."""

_SQLITE_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of a database error, as far as the driver tells it."""
    cause = getattr(error, "orig", error)
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state if isinstance(state, str) else None


def is_connection_lost(error: BaseException) -> bool:
    """Whether a statement's fate is unknown because its connection broke."""
    if isinstance(error, OSError | TimeoutError):
        return True
    return _is_of_database(error) and (
        getattr(error, "connection_invalidated", False)
        or (sqlstate(error) or "").startswith(("08", "57P"))
        or _is_driver_trouble(error)
    )


def is_server_trouble(error: BaseException) -> bool:
    """Whether the database could serve nobody: no connection, memory or disk is left, or it turned read-only."""
    if not _is_of_database(error):
        return False
    state = sqlstate(error)
    if state is not None:
        return (state.startswith(("53", "58")) and state not in _OF_THE_STATEMENT) or state == READ_ONLY
    return _sqlite_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM)


def is_transient(error: BaseException) -> bool:
    """Whether trying again later may help without anybody mending anything."""
    if is_connection_lost(error):
        return True
    if _is_of_database(error):
        if _is_of_connection(error):
            return True
        state = sqlstate(error)
        if state is not None:
            return state.startswith(_CLASSES) or state in _STATES
        return _sqlite_code(error) in _SQLITE_CODES
    return isinstance(error, InvalidRequestError) and "invalid transaction" in str(error)


def is_sqlite_busy(error: BaseException) -> bool:
    """Whether somebody else held SQLite's lock for longer than `busy_timeout`."""
    return _sqlite_code(error) == sqlite3.SQLITE_BUSY


def _is_of_database(error: BaseException) -> bool:
    """What SQLAlchemy has made of a driver's error; and asyncpg's own, which come as they are while SQLAlchemy sets a
    new connection up."""
    return isinstance(error, DBAPIError) or type(error).__module__.startswith("asyncpg.")


def _is_of_connection(error: BaseException) -> bool:
    """Whether the server refused or ended the whole connection, so that no statement is wrong: it says FATAL then. A
    database that takes no connections has the SQLSTATE of a sequence that was not used yet."""
    cause = getattr(error, "orig", error)
    return any(getattr(each, "severity_en", None) == "FATAL" for each in (cause, getattr(cause, "__cause__", None)))


def _sqlite_code(error: BaseException) -> int:
    return getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF  # the low byte of an extended code


def _is_driver_trouble(error: BaseException) -> bool:
    """asyncpg's own InterfaceError and InternalClientError: protocol races around a dying connection."""
    cause = getattr(error, "orig", error)
    names = {kind.__name__ for each in (cause, getattr(cause, "__cause__", None)) for kind in type(each).__mro__}
    return sqlstate(error) is None and bool(
        names & {"InterfaceError", "InternalClientError", "ConnectionDoesNotExistError"}
    )
