"""The rows of images that are worked on: found without a lock, worked on outside of any transaction, and looked at
again before anything is written about them. Whoever changed or deleted an image meanwhile has the last word.
"""

from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit.contrib.files.errors import ImageRefused, InvalidFile
from queue_kit.contrib.files.models import REFUSED, File
from queue_kit.contrib.files.store import FileStore
from queue_kit.contrib.files.variants import TRANSFORMABLE, Variant


class Original(NamedTuple):
    """What is to be known of an image while no transaction is open."""

    id: UUID
    object_key: str
    name: str


def is_transformable(file: File) -> bool:
    """Whether variants may be made: of an image that nobody has refused, and that is no variant itself."""
    return file.content_type in TRANSFORMABLE and file.original_id is None and REFUSED not in file.meta


async def find(session: AsyncSession, file_id: UUID) -> Original | None:
    """An image that can be worked on. No transaction is open afterwards."""
    file = await session.get(File, file_id)
    found = Original(file.id, file.object_key, file.name) if file is not None and is_transformable(file) else None
    await session.commit()
    return found


async def content_of(store: FileStore, original: Original) -> bytes:
    """The bytes of an image, unless they are more than are worked on: then `ImageRefused`."""
    try:
        return await store.read(original.object_key, max_bytes=store.images.max_bytes)
    except InvalidFile as error:
        raise ImageRefused("bytes", error.problem) from None


async def lock(session: AsyncSession, original: Original) -> File | None:
    """The row, locked for this transaction; `None` when it is gone or its content is another one by now."""
    same = select(File).where(File.id == original.id, File.object_key == original.object_key)
    return await session.scalar(same.with_for_update().execution_options(populate_existing=True))


async def note(session: AsyncSession, original: Original, **found: Any) -> None:
    """Write into `meta` what was found out about this content."""
    row = await lock(session, original)
    if row is not None:
        row.meta = {**row.meta, **found}


async def variant_of(session: AsyncSession, file_id: UUID, variant: Variant) -> File | None:
    """The file that was made of an image as this variant."""
    return await session.scalar(select(File).where(File.original_id == file_id, File.variant == str(variant)))
