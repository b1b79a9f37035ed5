"""Adding jobs, in the transaction that the caller holds or in one of its own. The database fills in the due time and
places the job, so every way in (these functions, the ORM, plain SQL) ends the same.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, overload

from sqlalchemy import Connection, Engine, Executable, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from queue_kit import hooks
from queue_kit._database import Database, check_database, own_commit
from queue_kit._explain import explain
from queue_kit._statements import adding, fencing
from queue_kit._transient import DEADLOCK, sqlstate
from queue_kit.errors import InvalidJob
from queue_kit.job import DEFAULT_PRIORITY, NewJob, Seconds

DEADLOCKS = 3
"""How often an insert of our own is sent again that the database chose to end a deadlock with: nothing was stored."""

HELD_JOB = "queue_kit.held_job"
"""Where a handler's session keeps, in its `info`, the unique key of the job it runs and the parameters of its fence."""


@overload
async def add_job(
    db: Database,
    name: str,
    data: Any = None,
    *,
    priority: int = ...,
    scheduled_at: datetime | None = ...,
    delay: Seconds | None = ...,
    handler_timeout: Seconds | None = ...,
    max_retry_count: int | None = ...,
    unique_key: None = None,
) -> int: ...
@overload
async def add_job(
    db: Database,
    name: str,
    data: Any = None,
    *,
    priority: int = ...,
    scheduled_at: datetime | None = ...,
    delay: Seconds | None = ...,
    handler_timeout: Seconds | None = ...,
    max_retry_count: int | None = ...,
    unique_key: str | None,
) -> int | None: ...
async def add_job(
    db: Database,
    name: str,
    data: Any = None,
    *,
    priority: int = DEFAULT_PRIORITY,
    scheduled_at: datetime | None = None,
    delay: Seconds | None = None,
    handler_timeout: Seconds | None = None,
    max_retry_count: int | None = None,
    unique_key: str | None = None,
) -> int | None:
    """Add one job and return its id; `None` when a live job holds its `unique_key`.

    `db` is an `AsyncSession` or `AsyncConnection` (the job exists when the caller commits, and never if they roll
    back), or an `AsyncEngine` (committed here). The other arguments are those of `NewJob`. Raises `InvalidJob` before
    the database is touched, `SchemaMismatch` when the queue's tables are missing, `AmbiguousCommit` when an engine's
    connection breaks at COMMIT.

    >>> async def sign_up(session):
    ...     session.add(User(email="a@b.c"))
    ...     await add_job(session, "email.send", {"to": "a@b.c"}, delay=60)
    ...     await session.commit()
    """
    check_database(db)  # before the job: a forgotten db has the name in its place
    job = NewJob(name, data, priority, scheduled_at, delay, handler_timeout, max_retry_count, unique_key)
    (job_id,) = await add_jobs(db, [job])
    return job_id


async def add_jobs(db: Database, jobs: Sequence[NewJob[Any]]) -> list[int | None]:
    """Add many jobs in one statement; the ids in the same order, `None` where a live job holds the `unique_key`.

    Of several new jobs with one key the first is stored. `db` and errors are those of `add_job`; a list of more than
    some ten thousand jobs is better added in pieces.

    >>> async def enqueue(engine):
    ...     return await add_jobs(engine, [NewJob("thumbnail", {"id": n}) for n in range(1000)])
    """
    check_database(db)
    if not jobs:
        return []
    batch = {"jobs": _batch(jobs)}
    try:
        if isinstance(db, AsyncEngine):
            rows = await greenlet_spawn(_insert_alone, db.sync_engine, batch, f"{len(jobs)} job(s)")
        else:
            if isinstance(db, AsyncSession):
                await db.run_sync(hand_over_key, {job.unique_key for job in jobs})
            rows = (await db.execute(adding.insert_jobs(), batch)).all()
    except DBAPIError as error:
        explain(error, db)
        raise
    ids = _in_order(jobs, [(row.id, row.unique_key) for row in rows])
    hooks.emit_enqueued(
        hooks.Enqueued(job_id, job) for job_id, job in zip(ids, jobs, strict=True) if job_id is not None
    )
    return ids


def _insert_alone(engine: Engine, batch: Mapping[str, str], what: str) -> Sequence[Row[Any]]:
    """Insert and commit. On PostgreSQL one statement that commits itself: one round trip instead of three."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")  # of this connection, until it goes back
            with own_commit(what):
                return _insert_at_once(connection, batch)
        rows = connection.execute(adding.insert_jobs(), batch).all()
        with own_commit(what):
            connection.commit()
        return rows


def _insert_at_once(connection: Connection, batch: Mapping[str, str]) -> Sequence[Row[Any]]:
    deadlocks = 0
    while True:
        try:
            return connection.execute(adding.insert_jobs(), batch).all()
        except DBAPIError as error:  # somebody may hold our keys, and wait for one of them
            deadlocks += 1
            if sqlstate(error) != DEADLOCK or deadlocks > DEADLOCKS:
                raise


def insert_jobs(jobs: Sequence[NewJob[Any]]) -> Executable:
    """The statement of `add_jobs`, for a sync `Session`, a `Connection` or a migration; it returns `id, unique_key`.

    Rows whose `unique_key` is taken are skipped. In a handler, use `add_jobs` to hand its own job's key over. Raises
    `ValueError` when `jobs` is empty.

    >>> def migrate_data(session):
    ...     session.execute(insert_jobs([NewJob("reindex", {"table": "book"})]))
    """
    if not jobs:
        raise ValueError("insert_jobs needs at least one job")
    return adding.insert_these_jobs(_batch(jobs))


def hand_over_key(session: Session, keys: Collection[str | None]) -> None:
    """In a handler's session, free the key of the job it runs when a new job is to take it, so a job may re-add
    itself. A rollback gives it back."""
    held = session.info.get(HELD_JOB)
    if held is not None and held[0] in keys:
        session.execute(fencing.hand_over_key(), held[1])


def _batch(jobs: Sequence[NewJob[Any]]) -> str:
    for job in jobs:
        if not isinstance(job, NewJob):
            raise InvalidJob("jobs", f"takes NewJob values, not {type(job).__name__}")
    return adding.jobs_batch((job, hooks.trace_context_for(job)) for job in jobs)


def _in_order(jobs: Sequence[NewJob[Any]], rows: Sequence[tuple[int, str | None]]) -> list[int | None]:
    keyed = {key: job_id for job_id, key in rows if key is not None}
    plain = iter(sorted(job_id for job_id, key in rows if key is None))
    return [next(plain) if job.unique_key is None else keyed.pop(job.unique_key, None) for job in jobs]
