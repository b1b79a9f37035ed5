"""Who holds a lock that the queue waits for: what looks like a database that does not answer."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from queue_kit._transient import is_sqlite_busy
from queue_kit.job import printable

LONG_LOCK = 5.0
"""Seconds from which on a lock that keeps others from the queue's tables is too long; migrations wait for less."""

LONG_WRITE = 2.0
"""The same of SQLite's one writer: handlers that hold the lock one after the other leave it after each second."""

_SHOWN = 5

# Those with a lock that workers wait for, those that wait for any, and who holds these up, also about other things.
_INVOLVED = text("""
    WITH RECURSIVE locks AS (
        SELECT coalesce(pid, 0) AS pid, mode, relname, granted,
               mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') AS keeps_out
        FROM pg_locks JOIN pg_class ON pg_class.oid = relation
        WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
              AND relkind = 'r' AND starts_with(relname, 'queue_kit_') AND pg_table_is_visible(relation)
    ), involved AS (
        SELECT pid FROM locks WHERE keeps_out OR NOT granted
        UNION
        SELECT unnest(pg_blocking_pids(pid)) FROM involved
    ), told AS (
        SELECT pid, coalesce(usename, '?') AS role, coalesce(state, '?') AS state, application_name,
               cardinality(pg_blocking_pids(pid)) > 0 AS waits, xact_start, query_start,
               pid IN (SELECT pid FROM locks WHERE keeps_out)
                   AND backend_type IS DISTINCT FROM 'autovacuum worker' AS keeps_out  -- which gives way
        FROM involved LEFT JOIN pg_stat_activity USING (pid)
    )
    SELECT told.*,
           extract(epoch FROM clock_timestamp() - CASE WHEN waits THEN query_start ELSE xact_start END) AS seconds,
           (
               SELECT string_agg(DISTINCT mode || ' of ' || relname, ', ') FROM locks
               WHERE locks.pid = told.pid AND granted <> waits
           ) AS locks
    FROM told ORDER BY waits, seconds DESC NULLS LAST
""")


async def involved(connection: AsyncConnection) -> Sequence[Row[Any]]:
    """The sessions of PostgreSQL that hold locks which keep others from the queue's tables, and those that wait; who
    waits for nobody comes first."""
    return (await connection.execute(_INVOLVED)).all()


def lasts(rows: Sequence[Row[Any]]) -> bool:
    """Whether one of them has kept others out, or has waited, for too long."""
    return any((row.waits or row.keeps_out) and (row.seconds or 0) > LONG_LOCK for row in rows)


def told(rows: Sequence[Row[Any]]) -> str:
    """They in words, with the mend; none of their statements, which may hold payloads."""
    shown = "; ".join(map(_told, rows[:_SHOWN]))
    others = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    first = next((row.pid for row in rows if row.pid and not row.waits), None)
    mend = f"; to end the first, as one who may: SELECT pg_terminate_backend({first})" if first else ""
    return f"{shown}{others}{mend}"


def _told(row: Row[Any]) -> str:
    if row.pid == 0:
        return f"a prepared transaction (pg_prepared_xacts) holds {row.locks or 'what others wait for'}"
    who = f"connection {row.pid} of {row.role} ({row.state}, application {row.application_name or '?'})"
    seconds = "?" if row.seconds is None else f"{row.seconds:.0f}"
    if row.waits:
        return printable(f"{who} waits for {row.locks or 'another lock'} since {seconds} s")
    return printable(f"{who} holds {row.locks or 'what others wait for'} in a transaction of {seconds} s")


async def trouble_of_writers(engine: AsyncEngine) -> str | None:
    """Why nobody can write SQLite's file, if so. Begins a transaction as a worker does, and rolls it back."""
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await driver.execute(f"PRAGMA busy_timeout = {LONG_WRITE * 1_000:.0f}")
        try:
            await connection.begin()
        except DBAPIError as error:
            if is_sqlite_busy(error):
                mend = "end its transaction, or it (`fuser` tells who has the file open)"
                return f"a process has held the lock of the file's one writer for {LONG_WRITE:g} s: {mend}"
            return f"no transaction that writes can begin: {error.orig}"
        await connection.rollback()
    return None
