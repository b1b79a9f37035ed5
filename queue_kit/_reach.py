"""What everything that looks at jobs and changes their fate has in common: a session on whatever `db` is, and ids."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from queue_kit._database import Database, check_database, own_commit
from queue_kit._explain import explain
from queue_kit._statements import database
from queue_kit.errors import InvalidJob
from queue_kit.job import check_name

MAX_ID = 2**63 - 1

UNREADABLE = (ValueError, OverflowError, RecursionError)
"""What reading raises for no JSON at all or a number of 6,000 digits, the year 12000, and 3,000 levels of lists."""


@asynccontextmanager
async def session_on(db: Database, *, reading: bool = False) -> AsyncIterator[AsyncSession]:
    """A session in the caller's transaction, or on an engine in one of its own, which is committed at the end. One that
    only reads does not wait for SQLite's one writer, nor hold it up."""
    check_database(db)
    try:
        if isinstance(db, AsyncSession):
            yield db
        elif isinstance(db, AsyncConnection):
            if not db.in_transaction():
                await db.begin()  # the caller's, as with any statement of theirs: they end it
            async with AsyncSession(db, expire_on_commit=False, join_transaction_mode="create_savepoint") as session:
                yield session
                await session.commit()
        else:
            engine = db.execution_options(queue_kit_readonly=True) if reading else db
            async with AsyncSession(engine, expire_on_commit=False) as session:
                yield session
                with own_commit("the change"):
                    await session.commit()
    except DBAPIError as error:
        explain(error, db)
        raise


async def notify(session: AsyncSession, channel: str) -> None:
    """Wake workers when the session's transaction commits (PostgreSQL; on SQLite they see the commit itself)."""
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(database.notify(), {"channel": channel})


def is_id(job_id: object, argument: str = "job_id") -> bool:
    """Whether this can be the id of a job at all; a `TypeError` for what is no integer."""
    if not isinstance(job_id, int) or isinstance(job_id, bool):
        raise TypeError(f"{argument} must be an integer, not {type(job_id).__name__}")
    return 0 < job_id <= MAX_ID


def check_limit(limit: object, most: int) -> int:
    """A number of rows, from 1 to `most`; else a `ValueError`."""
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= most:
        raise ValueError(f"limit is from 1 to {most}, not {limit!r}")
    return limit


def check_words(value: object, argument: str) -> None:
    """A filter by text is text or `None`; else a `TypeError`."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{argument} must be text, not {type(value).__name__}")


def is_name(word: str) -> bool:
    """Whether a job can have this as its name, or one of its keys: some text no database would take."""
    try:
        check_name(word)
    except InvalidJob:
        return False
    return True
