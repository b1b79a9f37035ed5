"""Failed jobs, grouped by what went wrong: a thousand failures of one cause are one line."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._database import Database
from queue_kit._dialect.columns import nearest_instant
from queue_kit._reach import check_limit, check_words, is_name, session_on
from queue_kit._statements import looking
from queue_kit.job import printable

NEWEST = 2_000
"""How many failed jobs are looked at, the newest: reading one's errors costs some 20 us."""

MAX_GROUPS = 1_000
MAX_HEAD = 200

# What differs between two failures of one cause: quoted words, ids, addresses, numbers.
_VARIABLE = re.compile(
    r"(?P<quote>['\"])(?:(?!(?P=quote)).)*(?P=quote)"
    r"|\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"
    r"|\b0x[0-9a-fA-F]+\b"
    r"|\b(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{12,}\b"
    r"|\d+(?:[.,:]\d+)*"
)


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed jobs of one name whose last error has one class and, but for numbers, ids and quoted words (`…`), one
    message, with its control characters escaped. The class is "" where no exception was the cause. `last_job_id` failed
    last, at `last_failed_at`.

    `more` tells that there are older failed jobs, at which nobody looked: the count may be larger.
    """

    name: str
    error_class: str
    message: str
    count: int
    last_failed_at: datetime
    last_job_id: int
    more: bool = False


async def failure_groups(db: Database, *, name: str | None = None, limit: int = 50) -> list[FailureGroup]:
    """The failed jobs by what went wrong, the largest group first, at most `limit` (1 to 1,000) of them.

    Looks at the 2,000 jobs that failed last, or at the 2,000 newest failed ones of a `name`; when there are others,
    every group says `more`. Raises `ValueError` for a limit out of bounds, `TypeError` for a name that is no text.

    >>> async def worst(engine):
    ...     for group in await failure_groups(engine, limit=3):
    ...         print(group.count, group.name, group.error_class, group.message)
    """
    check_limit(limit, MAX_GROUPS)
    check_words(name, "name")
    async with session_on(db, reading=True) as session:
        rows, more = await newest_failures(session, name)
    return grouped(rows, more=more)[:limit]


def grouped(rows: Iterable[Row[Any]], *, more: bool) -> list[FailureGroup]:
    """What `newest_failures` found, by what went wrong, the largest group first."""
    groups: dict[tuple[str, str, str], FailureGroup] = {}
    for row in rows:  # the last to fail first
        key = key_of(row)
        group = groups.get(key) or FailureGroup(*key, 0, nearest_instant(row.updated_at), row.id, more)
        groups[key] = replace(group, count=group.count + 1)
    return sorted(groups.values(), key=lambda group: -group.count)


async def group_of(session: AsyncSession, name: str, job_id: int) -> FailureGroup | None:
    """The group that a failed job is in, without its count; None when it is not among the newest failed ones."""
    rows, more = await newest_failures(session, name)
    row = next((row for row in rows if row.id == job_id), None)
    return None if row is None else FailureGroup(*key_of(row), 0, nearest_instant(row.updated_at), row.id, more)


async def newest_failures(session: AsyncSession, name: str | None) -> tuple[Sequence[Row[Any]], bool]:
    """The newest failed jobs, of a name or of all, the last to fail first; and whether there are others."""
    if name is None:
        found = await session.execute(looking.failed_lately(), {"limit": NEWEST + 1})
    elif is_name(name):
        found = await session.execute(looking.failed_of_name(), {"of_name": name, "limit": NEWEST + 1})
    else:
        return [], False
    rows = found.all()
    return rows[:NEWEST], len(rows) > NEWEST


def key_of(row: Row[Any]) -> tuple[str, str, str]:
    """What makes a failed job one of a group: its name, its error's class, and the head of its message."""
    return row.name, row.error_class or "", head_of(row.message or row.reason or "")


def head_of(message: str) -> str:
    """A message's first line without what differs from job to job, as it can be shown; that of a head is itself, so
    what was copied from a terminal will do."""
    line = printable(next(iter(message.strip().splitlines()), ""))
    head = _VARIABLE.sub(lambda found: f"{found['quote']}…{found['quote']}" if found["quote"] else "…", line)
    return head[:MAX_HEAD].strip()


def matching(rows: Iterable[Row[Any]], *, error_class: str | None, message: str | None) -> list[int]:
    """The ids of the failed jobs that fit."""
    wanted = (error_class, None if message is None else head_of(message))
    return [
        row.id for row in rows if all(each in (None, own) for each, own in zip(wanted, key_of(row)[1:], strict=True))
    ]
