"""The three things that `db` may be, and what is common to reaching a database through each of them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from queue_kit.errors import AmbiguousCommit

Database: TypeAlias = AsyncSession | AsyncConnection | AsyncEngine


def check_database(db: object) -> None:
    """Refuse anything that is not one of the three."""
    if not isinstance(db, AsyncSession | AsyncConnection | AsyncEngine):
        raise TypeError(f"db must be an AsyncSession, AsyncConnection or AsyncEngine, not {type(db).__name__}")


@asynccontextmanager
async def read_committed(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for who waits for a turn, whatever the engine's default isolation: a snapshot from before the turn
    would show what was there before."""
    async with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execution_options(isolation_level="READ COMMITTED")
        yield connection


@contextmanager
def own_commit(what: str) -> Iterator[None]:
    """Around a COMMIT of our own: a connection that breaks there leaves it open whether `what` was stored."""
    try:
        yield
    except (DBAPIError, OSError) as error:
        if isinstance(error, OSError) or error.connection_invalidated:
            raise AmbiguousCommit(f"the connection broke at COMMIT: {what} may or may not be stored") from error
        raise
