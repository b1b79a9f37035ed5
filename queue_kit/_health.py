"""What `queue-kit check` looks at: whether the database is in a state in which a queue stays quick. It changes nothing,
and takes some milliseconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from queue_kit import _locks, migrate
from queue_kit._statements import database
from queue_kit._transient import LOCK_NOT_AVAILABLE, sqlstate
from queue_kit.job import printable

LONG_SNAPSHOT = 600.0
"""Seconds from which on a transaction is too long: no row that died since it began can be cleaned up."""

MANY_DEAD = 100_000
"""Dead rows of jobs from which on a table that was not vacuumed lately is bloated; it vacuums itself from 5,000 on."""

LATELY = 600.0

LONG_LOG = 256 * 2**20
"""Bytes of SQLite's write-ahead log from which on somebody keeps it from being folded back."""

_TRIGGERS = {
    "postgresql": {"queue_kit_job_place", "queue_kit_job_notify"},
    "sqlite": {"queue_kit_job_place_insert", "queue_kit_job_place_update"},
}

_WAIT_BRIEFLY = text("SET LOCAL lock_timeout = '1s'")
_IN_RECOVERY = text("SELECT pg_is_in_recovery()")
_CONNECTIONS = text("""
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
               - coalesce(current_setting('reserved_connections', true)::int, 0) AS most,
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used
""")
_SNAPSHOTS = text("""
    SELECT 'connection ' || pid || ' of ' || coalesce(usename, '?') || ' (' || coalesce(state, '?') || ')' AS who,
           extract(epoch FROM clock_timestamp() - xact_start) AS seconds
    FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
          AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)  -- others hold back no cleaning, however old
    UNION ALL
    SELECT 'the prepared transaction ' || gid, extract(epoch FROM clock_timestamp() - prepared)
    FROM pg_prepared_xacts WHERE database = current_database()
    ORDER BY seconds DESC NULLS LAST LIMIT 5
""")
_DEAD = text("""
    SELECT n_dead_tup AS dead, pg_total_relation_size(relid) AS size,
           extract(epoch FROM clock_timestamp() - greatest(last_vacuum, last_autovacuum)) AS vacuumed_ago,
           current_setting('autovacuum') = 'on' AS server_vacuums,
           NOT EXISTS (
               SELECT FROM pg_class WHERE oid = relid AND 'autovacuum_enabled=false' = ANY (reloptions)
           ) AS table_vacuums
    FROM pg_stat_all_tables WHERE relid = to_regclass('queue_kit_job')
""")
_BUILT = {
    "postgresql": text("""
        SELECT indexrelid::regclass::text FROM pg_index
        WHERE indisvalid AND indrelid = ANY (SELECT to_regclass(t) FROM unnest(CAST(:tables AS text[])) AS t)
        UNION ALL SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass('queue_kit_job') AND tgenabled <> 'D'
    """),
    "sqlite": text("SELECT name FROM sqlite_master WHERE type IN ('index', 'trigger')"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: whether it is as it should be, and what is to be said about it."""

    about: str
    ok: bool
    words: str


async def examine(engine: AsyncEngine) -> list[Finding]:
    """Look at everything. Raises `SchemaMismatch`, and what the driver raises where nothing answers."""
    if engine.dialect.name == "postgresql":
        return await _examine_server(engine)
    async with engine.execution_options(queue_kit_readonly=True).connect() as connection:
        found = [await _schema(connection), _log(Path(engine.url.database or "")), await _indexes(connection)]
    return [*found, await _writer(engine)]


async def _examine_server(engine: AsyncEngine) -> list[Finding]:
    found, refused = [], []
    looks = {
        "schema": _schema,
        "server": _server,
        "connections": _connections,
        "snapshots": _snapshots,
        "bloat": _bloat,
        "indexes": _indexes,
    }
    async with engine.connect() as connection:
        for about, look in looks.items():
            try:
                async with connection.begin():
                    await connection.execute(_WAIT_BRIEFLY)
                    found.append(await look(connection))
            except DBAPIError as error:
                if sqlstate(error) != LOCK_NOT_AVAILABLE:
                    raise
                refused.append(about)
        return [*found, await _locks_of(connection, refused)]


async def _locks_of(connection: AsyncConnection, refused: list[str]) -> Finding:
    rows = await _locks.involved(connection)
    if refused:
        who = _locks.told(rows) if rows else "it is gone by now"
        return Finding("locks", ok=False, words=f"a lock kept the check from looking at {' and '.join(refused)}: {who}")
    if _locks.lasts(rows):
        return Finding("locks", ok=False, words=f"a lock keeps others from the queue's tables: {_locks.told(rows)}")
    return Finding("locks", ok=True, words="no lock keeps others from the queue's tables for long")


async def _writer(engine: AsyncEngine) -> Finding:
    trouble = await _locks.trouble_of_writers(engine)
    if trouble is not None:
        return Finding("locks", ok=False, words=trouble)
    return Finding("locks", ok=True, words="nobody keeps the lock of the file's one writer")


async def _schema(connection: AsyncConnection) -> Finding:
    await migrate.check_schema(connection)
    row = (await connection.execute(database.schema_version())).one()
    return Finding("schema", ok=True, words=f"the schema is at version {row.version}, as a worker needs it")


async def _server(connection: AsyncConnection) -> Finding:
    if await connection.scalar(_IN_RECOVERY):
        return Finding("server", ok=False, words="the server is a standby: a worker needs the primary")
    return Finding("server", ok=True, words="the server takes writes")


async def _connections(connection: AsyncConnection) -> Finding:
    row = (await connection.execute(_CONNECTIONS)).one()
    left = row.most - row.used
    words = f"{row.used} of {row.most} connections are in use"
    if left * 10 >= row.most:
        return Finding("connections", ok=True, words=words)
    return Finding("connections", ok=False, words=f"{words}: lower the pools, raise max_connections, or use a pooler")


async def _snapshots(connection: AsyncConnection) -> Finding:
    rows = [row for row in await connection.execute(_SNAPSHOTS) if row.seconds is not None]
    long = [f"{printable(row.who)} for {row.seconds:.0f} s" for row in rows if row.seconds > LONG_SNAPSHOT]
    if not long:
        return Finding("snapshots", ok=True, words="no old transaction keeps dead rows")
    mend = "end them (pg_terminate_backend), and set idle_in_transaction_session_timeout"
    return Finding(
        "snapshots", ok=False, words=f"old transactions keep dead rows from being cleaned up: {', '.join(long)}; {mend}"
    )


async def _bloat(connection: AsyncConnection) -> Finding:
    row = (await connection.execute(_DEAD)).first()
    if row is None:  # the statistics are off
        return Finding("bloat", ok=True, words="nothing is known of dead rows: the server keeps no statistics")
    words = f"the jobs' table has {row.dead:,} dead rows, and {row.size / 2**20:,.0f} MiB with its indexes"
    if not row.server_vacuums:
        return Finding("bloat", ok=False, words=f"{words}, and autovacuum is off for the whole server: turn it on")
    if not row.table_vacuums:
        return Finding("bloat", ok=False, words=f"{words}, and autovacuum is off for it: turn it on")
    if row.dead > MANY_DEAD and not _lately(row):
        mend = "see whether an old transaction or too few autovacuum workers hold it up, and VACUUM queue_kit_job"
        return Finding("bloat", ok=False, words=f"{words}, and was not vacuumed for ten minutes: {mend}")
    return Finding("bloat", ok=True, words=words)


def _lately(row: Row[Any]) -> bool:
    return row.vacuumed_ago is not None and row.vacuumed_ago < LATELY


def _log(path: Path) -> Finding:
    log = path.with_name(f"{path.name}-wal")
    size = log.stat().st_size if log.exists() else 0
    words = f"the write-ahead log has {size / 2**20:.1f} MiB"
    if size <= LONG_LOG:
        return Finding("snapshots", ok=True, words=words)
    return Finding("snapshots", ok=False, words=f"{words}: a process reads in one transaction for too long; end it")


async def _indexes(connection: AsyncConnection) -> Finding:
    dialect = connection.dialect.name
    tables = migrate.metadata.sorted_tables
    parameters = {"tables": [table.name for table in tables]} if dialect == "postgresql" else {}
    built = {str(row[0]).rpartition(".")[2] for row in await connection.execute(_BUILT[dialect], parameters)}
    needed = {str(index.name) for table in tables for index in table.indexes} | _TRIGGERS[dialect]
    if dialect == "postgresql":
        needed |= {str(table.primary_key.name) for table in tables}
    missing = sorted(needed - built)
    if not missing:
        return Finding("indexes", ok=True, words="every index and trigger is there")
    return Finding(
        "indexes",
        ok=False,
        words=f"{_listed(missing)} missing, invalid or off: restore them as the migrations make them",
    )


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{', '.join(listed)} {'is' if len(listed) == 1 else 'are'}"
