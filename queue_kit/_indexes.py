"""Indexes that are built while their tables are in use, on PostgreSQL. The revision creates them as well, in its
transaction, for the ways of migrating that cannot do this.

One migration builds at a time: two would wait for each other. A lock of the session would not do, since a transaction
pooler lends the session that has it to others; so it is that of the migration's transaction, and the building is done
on a second connection. A pooler keeps a transaction to one connection, and it ends with the process.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from queue_kit._clone import clone_of
from queue_kit.errors import ConfigurationError

PATIENCE = 10.0
"""Seconds in which there is a second connection, or none: a pooler may have only one for all."""

PAUSE = 0.2
"""Seconds until somebody who waits asks again."""

_LOCK = 0x71_6B_6D_69_67_73  # an arbitrary number, the same in every process: "qkmigs"
_ASK_FOR_TURN = text(f"SELECT pg_try_advisory_xact_lock({_LOCK})")
_MAY_IDLE = text("SET LOCAL idle_in_transaction_session_timeout = 0")
_IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
_IS_BUILT_ON = text(
    "SELECT count(*) FROM pg_stat_progress_create_index "
    "WHERE datname = current_database() AND relid = to_regclass(:table)"
)

_logger = logging.getLogger("queue_kit.migrate")


async def build_beside_writers(guard: AsyncConnection, indexes: Mapping[str, str]) -> None:
    """Build what is missing of some indexes (name to `table (columns) WHERE ...`), and anew what a killed migration has
    left half built. The migration goes on in the transaction of `guard`, which keeps others from building till it ends.

    Without a second connection nothing is built, and an index that is half built is a `ConfigurationError`: the
    revision would take it for whole.
    """
    if not indexes:
        return
    await _take_turn(guard)
    valid = {name: await guard.scalar(_IS_VALID, {"name": name}) for name in indexes}
    missing = [name for name in indexes if not valid[name]]
    if not missing:
        return
    # CREATE INDEX CONCURRENTLY waits for every snapshot, and a transaction keeps that of its last query until the next
    # statement. This one has none, and lets no server end the guard for being idle.
    await guard.execute(_MAY_IDLE)
    async with _second_connection(guard.engine) as connection:
        if connection is not None:
            for name in missing:
                await _build(connection, name, indexes[name])
            return
    half_built = [name for name in missing if valid[name] is False]
    if half_built:
        raise ConfigurationError(
            f"{', '.join(half_built)} was left half built, and there is no second connection to build it anew: migrate "
            "on a connection that passes the pooler by"
        )
    _logger.warning(
        "no second connection to build indexes on within %g s: they are built in the migration's transaction, and "
        "writers wait for it",
        PATIENCE,
    )


async def _take_turn(guard: AsyncConnection) -> None:
    """Who waits asks again and again, each time in a transaction of its own: a statement that waits is one that CREATE
    INDEX CONCURRENTLY waits for."""
    while not await guard.scalar(_ASK_FOR_TURN):
        await guard.rollback()
        await asyncio.sleep(PAUSE)


@asynccontextmanager
async def _second_connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection | None]:
    """One beside the guard's, of a pool of its own: the engine's may hold only one."""
    private = clone_of(engine)
    try:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(PATIENCE):
                    connection = await stack.enter_async_context(private.connect())
                    await connection.execution_options(isolation_level="AUTOCOMMIT")
                    await connection.execute(text("SELECT 1"))  # or a pooler has not found one yet
            except TimeoutError:
                yield None
            else:
                yield connection
    finally:
        await private.dispose()


async def _build(connection: AsyncConnection, name: str, on: str) -> None:
    table, _, _ = on.partition(" ")
    # The server finishes what a killed migration was building, though its turn is over.
    while await connection.scalar(_IS_BUILT_ON, {"table": table}):  # noqa: ASYNC110 - nothing tells us
        await asyncio.sleep(PAUSE)
    valid = await connection.scalar(_IS_VALID, {"name": name})
    if valid is False:
        await connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
    if not valid:
        await connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY {name} ON {on}")
