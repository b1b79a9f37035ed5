"""What happens to files in many tests: they are uploaded, get a transform, are counted and cleaned up."""

import asyncio
from typing import Any
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import AbortToken, Event
from queue_kit.contrib.files import Cleaned, File, FileStore, create_or_update_file, job_file_cleanup
from tests.files.content import PNG


async def upload(db: Any, store: FileStore, source: Any = PNG, **options: Any) -> File:
    return await create_or_update_file(db, store, **{"name": "cat.png", "source": source} | options)


async def count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return (await connection.execute(select(func.count()).select_from(File))).scalar_one()


async def a_transform(session: AsyncSession, original: File) -> File:
    """A transform as the job makes it, whose object is left out."""
    made = File(
        name="cat.webp",
        object_key=f"files/{uuid4().hex}",
        content_type="image/webp",
        content_length=1,
        sha256="0" * 64,
        original_id=original.id,
        variant="w320.webp",
    )
    session.add(made)
    await session.flush()
    return made


def an_event() -> Event:
    return Event.for_job(AbortToken(), job_id=1, name="queue_kit.file.cleanup", attempt=1)


async def clean(engine: AsyncEngine, store: FileStore, *, event: Event | None = None, **options: Any) -> Cleaned:
    """Run a cleanup by itself; what it came to."""
    await asyncio.sleep(0.002)  # SQLite's clock has milliseconds: what was written in this one is not old enough yet
    cleanup: Any = job_file_cleanup(store, **{"minimum_age": 0} | options)
    async with AsyncSession(engine) as session:
        return await cleanup(event or an_event(), session, None)
