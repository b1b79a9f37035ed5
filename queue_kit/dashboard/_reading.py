"""Jobs as pages show them. Anybody with SQL may have written their rows, so they are read as text: what cannot be read
is so for itself alone, and one statement reads a list whatever is in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit import _records
from queue_kit.job import JobState
from queue_kit.models import JobRow
from queue_kit.operate import get_job_text

BROKEN = object()
"""In the place of a part that cannot be read."""

PARKED = "infinity"
"""What PostgreSQL says of a time that never comes."""

Instant: TypeAlias = datetime | str
"""A time; as the database wrote it where Python has no such time."""


@dataclass(frozen=True, slots=True)
class Line:
    """A job in a list. Of one whose texts are hidden, `error` is a class at most."""

    id: int
    name: str
    state: str
    unique_key: str | None
    retry_count: int
    max_retry_count: int | None
    scheduled_at: Instant
    updated_at: Instant
    error: str
    message: str

    @property
    def is_unreadable(self) -> bool:
        """Whether something that the list shows of it cannot be read."""
        return any(isinstance(each, str) and each != PARKED for each in (self.scheduled_at, self.updated_at))


def line_of(row: Row[Any], *, is_hidden: bool) -> Line:
    """A row of `job_heads`."""
    failed = row.state != JobState.completed and (row.error_class is not None or row.reason is not None)
    title = row.error_class or ("" if is_hidden else row.reason) or "Failed"
    message = row.message if row.error_class is not None and not is_hidden else None
    return Line(
        row.id,
        row.name,
        row.state,
        row.unique_key,
        row.retry_count,
        row.max_retry_count,
        _records.time(row.scheduled_at),
        _records.time(row.updated_at),
        title if failed else "",
        message or "",
    )


@dataclass(frozen=True, slots=True)
class Whole:
    """A job with all its columns, `BROKEN` where JSON cannot be read. `problems` are the columns that cannot, and why;
    `mends` the statements that make them readable."""

    columns: dict[str, Any]
    problems: Mapping[str, str]
    mends: Mapping[str, str]

    @property
    def worker_id(self) -> UUID | None:
        """The worker that has it, or had it last."""
        try:
            return UUID(self.columns["worker_id"])
        except (TypeError, ValueError):
            return None

    @property
    def is_complete(self) -> bool:
        """Whether nothing will happen to the job by itself any more."""
        return JobState(self.columns["state"]).is_complete


async def whole(session: AsyncSession, job_id: int) -> Whole | None:
    """A job, readable or not; None when there is none."""
    row = await get_job_text(session, job_id)
    if row is None:
        return None
    columns, problems = _records.read(row)
    broken = {name: BROKEN for name in problems if columns[name] is None}
    return Whole(columns | broken, problems, _records.mends(job_id, problems))


async def is_there(session: AsyncSession, job_id: int) -> bool:
    """Whether there is such a job, readable or not."""
    return (await session.execute(select(JobRow.id).where(JobRow.id == job_id))).first() is not None
