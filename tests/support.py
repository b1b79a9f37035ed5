"""What many tests need: waiting for a condition, turns of the loop, moving a job's times, and a hook that remembers.

Processes of tests import it too, so it does without pytest: each would take a third longer to start.
"""

import asyncio
import inspect
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy import __version__, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import JobRow, JobState, Settled, Started, WorkerState

if TYPE_CHECKING:
    import pytest

PATIENCE = 20.0
"""Seconds until a test is given up. No test takes them."""

MARGIN = 5.0
"""Seconds that a busy machine may add to what is promised."""

SQLALCHEMY_2_0 = __version__.startswith("2.0.")
"""Then the pool logs an error and a traceback when a connection is cut that it was closing, and pings take longer."""


def free_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def until(condition: Callable[[], Any], *, seconds: float = PATIENCE) -> Any:
    """Wait until the condition (a function, async or not) holds; returns what it returned."""
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return holds
        assert time.monotonic() < deadline, f"not within {seconds} s: {inspect.getsource(condition).strip()}"
        await asyncio.sleep(0.01)


async def turns(count: int = 50) -> None:
    """Let everything that can go on without an event from outside go on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def move(engine: AsyncEngine, job_id: int, **seconds: float) -> None:
    """Move a job's times by seconds, as if the database's clock had gone on: `move(engine, 1, lease_until=-60)`."""
    async with AsyncSession(engine) as session:
        row = await session.get_one(JobRow, job_id)
        for column, by in seconds.items():
            setattr(row, column, getattr(row, column) + timedelta(seconds=by))
        await session.commit()


async def change(engine: AsyncEngine, job_id: int, *conditions: Any, **values: Any) -> None:
    """Write columns of a job behind the library's back, if the conditions still hold."""
    async with engine.begin() as connection:
        await connection.execute(update(JobRow.__table__).where(JobRow.id == job_id, *conditions).values(**values))


def reading(engine: AsyncEngine) -> AsyncEngine:
    """The engine for a look: on SQLite one that waits for no writer, and that keeps none waiting."""
    return engine.execution_options(queue_kit_readonly=True)


async def row_of(engine: AsyncEngine, job_id: int) -> JobRow:
    """A job's row, which must be there."""
    async with AsyncSession(reading(engine), expire_on_commit=False) as session:
        return await session.get_one(JobRow, job_id)


async def state_of(engine: AsyncEngine, job_id: int) -> JobState:
    """A job's state."""
    return (await row_of(engine, job_id)).state


async def is_completed(engine: AsyncEngine, job_id: int) -> bool:
    """Whether a job has completed."""
    return await state_of(engine, job_id) is JobState.completed


async def count_jobs(engine: AsyncEngine, *conditions: Any) -> int:
    """How many jobs there are."""
    async with reading(engine).connect() as connection:
        return (await connection.execute(select(func.count()).select_from(JobRow).where(*conditions))).scalar_one()


async def all_complete(engine: AsyncEngine, *, seconds: float = PATIENCE) -> None:
    """Wait until no job is live."""

    async def complete() -> bool:
        return await count_jobs(engine, ~JobRow.is_complete) == 0

    await until(complete, seconds=seconds)


async def make_effects(engine: AsyncEngine) -> None:
    """A table for what handlers do, without a constraint that would hide doing it twice."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE effect (job_id BIGINT)"))


ADD_EFFECT = text("INSERT INTO effect VALUES (:job_id)")


async def effects(engine: AsyncEngine) -> list[int]:
    """The job ids in the table of effects."""
    async with reading(engine).connect() as connection:
        return list((await connection.execute(text("SELECT job_id FROM effect ORDER BY job_id"))).scalars())


AWAY = (DBAPIError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What a database that is away raises. The driver's own come as they are while SQLAlchemy sets up a connection."""

NO_CACHES = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
"""For asyncpg through a pooler that changes the server's connection with each transaction."""

DOWN, UP = "the database does not answer", "the database answers again"


def changes(caplog: "pytest.LogCaptureFixture") -> list[str]:
    """What was logged of the database's coming and going, without its reasons."""
    return [each for record in caplog.records for each in (DOWN, UP) if record.message.startswith(each)]


class Recorder:
    """A hook that remembers what it is told."""

    def __init__(self) -> None:
        self.started: list[Started] = []
        self.settled: list[Settled] = []
        self.states: list[str] = []
        """All but those of the listener, which PostgreSQL alone has, and which come when they come."""
        self.listener: list[str] = []

    def on_started(self, record: Started) -> None:
        self.started.append(record)

    def on_settled(self, record: Settled) -> None:
        self.settled.append(record)

    def on_worker_state(self, record: WorkerState) -> None:
        (self.listener if record.state in ("listening", "polling") else self.states).append(record.state)

    @property
    def verdicts(self) -> list[str]:
        return [record.outcome.verdict.value for record in self.settled]
