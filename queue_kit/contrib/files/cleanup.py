"""The job that deletes what no row names: objects of deleted files, of replaced content, of uploads that were rolled
back. Objects are listed and looked up by pages, so memory stays flat however many there are.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Any

from sqlalchemy import Delete, Select, Text, bindparam, delete, exists, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from queue_kit._dialect.batches import member_of
from queue_kit._handler import HandlerFunction
from queue_kit._statements.database import database_time
from queue_kit.contrib.files.errors import FilesNotDeleted
from queue_kit.contrib.files.models import File
from queue_kit.contrib.files.store import FileStore
from queue_kit.errors import ConfigurationError
from queue_kit.event import Event
from queue_kit.job import Job, Seconds, in_seconds

MOST_REASONS = 20
"""Objects that are named when they could not be deleted; a storage that is down fails for every one of them."""


@dataclass(slots=True)
class Cleaned:
    """What a cleanup came to: the `objects` that there were, how many of them no row named and were `deleted` (in a dry
    run: would be), and the `transforms` whose original was gone."""

    objects: int = 0
    deleted: int = 0
    transforms: int = 0


def job_file_cleanup(
    store: FileStore, *, minimum_age: Seconds = 86_400.0, dry_run: bool = False
) -> HandlerFunction[dict[str, Any]]:
    """A handler that deletes the store's objects that no row names, and the transforms whose original is gone.

    An object younger than `minimum_age` seconds (or a timedelta) stays: the row of an upload may not be committed
    yet. Make that longer than your longest upload and your longest transaction. With `dry_run` it only counts. Register
    it as `queue_kit.file.cleanup`, with the cron line `0 2 * * *` and a long timeout, as `file_jobs` does.

    The store's prefix must belong to this one database: to another's table all of its objects are nobody's. The run
    ends with `FilesNotDeleted` when some could not be deleted; the others then are. Raises `ConfigurationError` for an
    age that is none.

    >>> cleanup = job_file_cleanup(FileStore.memory(), minimum_age=3 * 86_400)
    """
    age = _check_age(minimum_age)

    async def cleanup(event: Event, session: AsyncSession, _job: Job[dict[str, Any]]) -> Cleaned:
        cleaned, reasons, failed = Cleaned(), dict[str, str](), 0
        started_at = await session.scalar(database_time())
        assert started_at is not None
        if not dry_run:
            cleaned.transforms = len((await session.scalars(_orphaned_transforms())).all())
        await session.commit()  # no transaction is open while the storage is at work
        async for page in store.pages():
            event.signal.raise_if_aborted()
            cleaned.objects += len(page)
            unnamed = await _unnamed(session, [key for key, written in page.items() if written < started_at - age])
            refused = {} if dry_run else await store.delete(unnamed)
            cleaned.deleted += len(unnamed) - len(refused)
            failed += len(refused)
            reasons |= islice(refused.items(), MOST_REASONS - len(reasons))
        if not dry_run:
            await store.delete_unfinished(started_at - age)
        event.log.info("%d of %d objects %s", cleaned.deleted, cleaned.objects, "to delete" if dry_run else "deleted")
        if failed:
            raise FilesNotDeleted(failed, reasons)
        return cleaned

    return cleanup


async def _unnamed(session: AsyncSession, keys: Collection[str]) -> list[str]:
    """Those of the keys that no row names."""
    if not keys:
        return []
    named = set(await session.scalars(_named(), {"keys": json.dumps(list(keys))}))
    await session.commit()
    return [key for key in keys if key not in named]


@cache
def _named() -> Select[Any]:
    return select(File.object_key).where(member_of(File.object_key, bindparam("keys", type_=Text())))


@cache
def _orphaned_transforms() -> Any:
    original = aliased(File)
    gone = ~exists().where(original.id == File.original_id)
    orphaned: Delete = delete(File).where(File.original_id.is_not(None), gone)
    return orphaned.returning(File.id).execution_options(synchronize_session=False)


def _check_age(age: Seconds) -> timedelta:
    seconds = in_seconds(age)
    if seconds is None or not 0 <= seconds <= 36_500 * 86_400:
        raise ConfigurationError(f"minimum_age is seconds, at least 0, not {age!r}")
    return timedelta(seconds=seconds)
