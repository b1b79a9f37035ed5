"""Reading rows that anybody with SQL may have written: what cannot be read is so for itself alone, not for its list."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Select, event, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, ORMExecuteState, defer, load_only
from sqlalchemy.sql.base import ExecutableOption

from queue_kit._reach import UNREADABLE
from queue_kit.models import JobRow
from queue_kit.operate import get_job, list_jobs

LEAN = (defer(JobRow.data, raiseload=True), defer(JobRow.trace_context, raiseload=True))
"""A row without what lists do not show, of which each may be a megabyte."""

CORE = (*LEAN, defer(JobRow.errors, raiseload=True))
BARE = (load_only(JobRow.id, JobRow.name, raiseload=True),)

BROKEN = object()
"""In the place of a part that cannot be read."""

Reading: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncSession]]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A job of which no more can be read."""

    id: int
    name: str


def narrow(session: AsyncSession, options: Sequence[ExecutableOption], back_to: int = 0) -> None:
    """Let a session read no more of jobs than these options say, and no jobs behind an id."""

    def narrowed(execution: ORMExecuteState) -> None:
        if isinstance(execution.statement, Select) and _is_of_rows(execution.statement):
            leaner = execution.statement.options(*options)
            execution.statement = leaner.where(JobRow.id >= back_to) if back_to else leaner

    event.listen(session.sync_session, "do_orm_execute", narrowed)


def _is_of_rows(statement: Select[Any]) -> bool:
    return any(column["expr"] is JobRow for column in statement.column_descriptions)


async def listed(reading: Reading, *, back_to: int, **filters: Any) -> list[JobRow | Unreadable]:
    """What `list_jobs` gives; when one row spoils that, each row by itself."""
    try:
        async with reading() as session:
            narrow(session, LEAN, back_to)
            return list(await list_jobs(session, **filters))
    except UNREADABLE:
        async with reading() as session:
            narrow(session, BARE, back_to)
            jobs = [Unreadable(row.id, row.name) for row in await list_jobs(session, **filters)]
        rows = [await _one(reading, job) for job in jobs]
        return [row for row in rows if row is not None]


async def _one(reading: Reading, job: Unreadable) -> JobRow | Unreadable | None:
    try:
        async with reading() as session:
            narrow(session, LEAN)
            return await get_job(session, job.id)
    except UNREADABLE:
        return job


async def in_parts(reading: Reading, job_id: int) -> tuple[JobRow | None, Any, Any, Any]:
    """A job, and beside it its data, errors and trace context, each of them `BROKEN` when it cannot be read."""
    async with reading() as session:
        narrow(session, CORE)
        row = await get_job(session, job_id)
    data, errors, trace = [await _part(reading, job_id, part) for part in _PARTS]
    return row, data, errors, trace


_PARTS = (JobRow.data, JobRow.errors, JobRow.trace_context)


async def _part(reading: Reading, job_id: int, column: InstrumentedAttribute[Any]) -> Any:
    try:
        async with reading() as session:
            return (await session.execute(select(column).where(JobRow.id == job_id))).scalar_one_or_none()
    except UNREADABLE:
        return BROKEN


async def is_there(reading: Reading, job_id: int) -> bool:
    """Whether there is such a job, readable or not."""
    async with reading() as session:
        return (await session.execute(select(JobRow.id).where(JobRow.id == job_id))).first() is not None
