"""Looking at the jobs that wait."""

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from queue_kit._database import Database
from queue_kit.handlers import NamedHandler
from queue_kit.job import check_payload
from queue_kit.models import JobRow
from queue_kit.operate import MAX_PAGE, list_jobs

T = TypeVar("T")

_SHOWN = 10


@overload
async def enqueued(db: Database, job: NamedHandler[T], data: T | None = None) -> list[JobRow]: ...
@overload
async def enqueued(db: Database, job: str | None = None, data: Any = None) -> list[JobRow]: ...
async def enqueued(db: Database, job: NamedHandler[Any] | str | None = None, data: Any = None) -> list[JobRow]:
    """The jobs that are not complete, oldest first: all of them, or those of a handler or a name, with this `data`.

    With a handler `data` is its whole payload; with a name it is JSON, of which an object matches when the job's data
    has each of its items. Raises `InvalidJob` for data that the handler would not take, or that is no JSON.

    >>> async def test_sign_up(session):
    ...     await sign_up(session, "a@b.c")
    ...     assert not await enqueued(session, "invoice.send")
    """
    name = job.name if isinstance(job, NamedHandler) else job
    if name is not None and not isinstance(name, str):
        raise TypeError(f"job is a registered handler or a name, not {type(job).__name__}")
    if not isinstance(job, NamedHandler) and data is not None:
        check_payload(data)
    wanted = job.payload.encode(data) if isinstance(job, NamedHandler) and data is not None else data
    whole = isinstance(job, NamedHandler)
    waiting = [row for row in await _all(db, name) if not row.is_complete]
    return [row for row in reversed(waiting) if wanted is None or _fits(row.data, wanted, whole=whole)]


@overload
async def assert_enqueued(db: Database, job: NamedHandler[T], data: T | None = None) -> JobRow: ...
@overload
async def assert_enqueued(db: Database, job: str, data: Any = None) -> JobRow: ...
async def assert_enqueued(db: Database, job: NamedHandler[Any] | str, data: Any = None) -> JobRow:
    """The one job that `enqueued` finds, to look at the rest of it. Raises `AssertionError`, which says what there is,
    when there is none, or more than one.

    >>> async def test_sign_up(session):
    ...     await sign_up(session, "a@b.c")
    ...     job = await assert_enqueued(session, "email.send", {"to": "a@b.c"})
    ...     assert job.priority == 1
    """
    found = await enqueued(db, job, data)
    if len(found) == 1:
        return found[0]
    name = job.name if isinstance(job, NamedHandler) else job
    sought = repr(name) if data is None else f"{name!r} with {data!r}"
    counted = f"{len(found)} jobs are" if found else "no job is"
    said = f"{counted} enqueued that would be {sought}"
    there = found or [row for row in reversed(await _all(db, None)) if not row.is_complete]
    if not there:
        raise AssertionError(f"{said}, nor any other: was what enqueued it committed, or in this same transaction?")
    lines = [f"  {row.id} {row.name} {row.data!r}" for row in there[:_SHOWN]]
    more = [f"  and {len(there) - _SHOWN} more"] if len(there) > _SHOWN else []
    raise AssertionError("\n".join([f"{said}; there are:", *lines, *more]))


async def _all(db: Database, name: str | None) -> list[JobRow]:
    rows = page = await list_jobs(db, name=name, limit=MAX_PAGE)
    while len(page) == MAX_PAGE:
        page = await list_jobs(db, name=name, limit=MAX_PAGE, after=page[-1].id)
        rows = rows + page
    return rows


def _fits(data: Any, wanted: Any, *, whole: bool) -> bool:
    if whole or not (isinstance(data, Mapping) and isinstance(wanted, Mapping)):
        return bool(data == wanted)
    return all(key in data and data[key] == value for key, value in wanted.items())
