"""Storing files: the object first, the row after, in the caller's transaction.

An update writes a new object and lets the row point to it, so a rollback loses nothing, and whoever reads the old bytes
reads them to the end. Objects that no row names any more are left to `job_file_cleanup`.
"""

import unicodedata
from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert as insert_or_skip
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._database import Database, check_database
from queue_kit._reach import session_on
from queue_kit.contrib.files._incoming import Source
from queue_kit.contrib.files._sniff import check_allowed, check_content_type, decide
from queue_kit.contrib.files.errors import InvalidFile
from queue_kit.contrib.files.models import REFUSED, File, content_id
from queue_kit.contrib.files.store import FileStore, Stored
from queue_kit.enqueue import add_job
from queue_kit.errors import InvalidJob
from queue_kit.job import check_payload

PLACEHOLDER_JOB = "queue_kit.file.generate_placeholder_image"

MAX_NAME_LENGTH = 255

COMPUTED = ("width", "height", "placeholder", REFUSED)
"""What jobs write into `File.meta`. It is of the old content, and goes with it."""


async def create_or_update_file(
    db: Database,
    store: FileStore,
    *,
    name: str,
    source: Source,
    content_type: str | None = None,
    allowed_content_types: Collection[str] | None = None,
    schedule_placeholder_image_job: bool = False,
    file_id: UUID | None = None,
    meta: Mapping[str, Any] | None = None,
) -> File:
    """Store content and the row that describes it; with the `file_id` of a file there is, its new content, and with
    any other one a file of this id.

    `source` is bytes, a `Path`, or something to read from asynchronously. The content type is found from the bytes;
    `content_type` may say more of what they cannot tell (`text/csv`; empty, as some forms send it, says nothing), and
    `allowed_content_types` which there may be (`["image/*", "application/pdf"]`). `meta` is JSON that is kept with the
    file; `None` leaves it as it is. With `schedule_placeholder_image_job` an image gets its placeholder and its size by
    a job.

    `db` is an `AsyncSession` or `AsyncConnection` (the file exists when the caller commits), or an `AsyncEngine`
    (committed here). The content is uploaded before the row is written, so begin no transaction before that need not be
    held that long. An update drops the transforms of the old content.

    Raises `InvalidFile` before anything is stored for content that is not allowed and for arguments that cannot be
    right, while it is uploaded for content that is too long, and after it for the `file_id` of a transform.

    >>> async def upload(session, store, body):
    ...     file = await create_or_update_file(
    ...         session, store, name="cat.jpg", source=body, allowed_content_types=["image/jpeg", "image/png"]
    ...     )
    ...     await session.commit()
    """
    check_database(db)
    name = _check_name(name)
    _check_meta(meta)
    if file_id is not None and not isinstance(file_id, UUID):
        raise InvalidFile("file_id", f"must be a UUID, not {type(file_id).__name__}")
    if content_type:
        check_content_type(content_type)
    if allowed_content_types is not None:
        check_allowed(allowed_content_types)
    incoming = store.incoming(source)
    try:
        found = decide(await incoming.first(), content_type or None, allowed_content_types)
        stored = await store.write(incoming)
    finally:
        await incoming.close()
    values = {"name": name, **content_columns(stored, found)}
    async with session_on(db) as session:
        file = await _write_row(session, file_id or uuid4(), values, meta)
        if schedule_placeholder_image_job and file.content_type.startswith("image/"):
            await schedule_placeholder(session, file)
    return file


def content_columns(stored: Stored, content_type: str) -> dict[str, Any]:
    """What a row says of its content: what it is, and where it lies."""
    return {
        "object_key": stored.object_key,
        "content_type": content_type,
        "content_length": stored.content_length,
        "sha256": stored.sha256,
    }


async def _write_row(
    session: AsyncSession, file_id: UUID, values: Mapping[str, Any], meta: Mapping[str, Any] | None
) -> File:
    while True:
        file = await session.get(File, file_id, with_for_update=True, populate_existing=True)
        if file is not None:
            return await update_row(session, file, values, meta)
        new = insert_or_skip(File).values(id=file_id, meta=dict(meta or {}), **values)
        # Skipped when somebody else has just created it.
        created: File | None = await session.scalar(
            new.on_conflict_do_nothing(index_elements=[File.id]).returning(File)
        )
        if created is not None:
            return created


async def update_row(
    session: AsyncSession, file: File, values: Mapping[str, Any], meta: Mapping[str, Any] | None = None
) -> File:
    """Change a row that is locked, and drop the transforms of its old content."""
    if file.original_id is not None:
        raise InvalidFile("file_id", f"{file.id} is a transform of {file.original_id}; update the original")
    kept = {key: value for key, value in file.meta.items() if key not in COMPUTED}
    for column, value in values.items():
        setattr(file, column, value)
    file.meta = kept if meta is None else dict(meta)
    # The row first: a transform that is being made waits for its lock, and then sees that the content has changed.
    await session.flush()
    await session.execute(delete(File).where(File.original_id == file.id))
    return file


async def schedule_placeholder(session: AsyncSession, file: File) -> None:
    """Have the placeholder of an image made."""
    key = f"{PLACEHOLDER_JOB}:{content_id(file.object_key)}"
    await add_job(session, PLACEHOLDER_JOB, {"file_id": str(file.id)}, unique_key=key)


async def get_file(db: Database, file_id: UUID) -> File | None:
    """The file with this id, or `None`. `db` is what it is for `create_or_update_file`.

    >>> async def show(session, file_id):
    ...     file = await get_file(session, file_id)
    """
    async with session_on(db, reading=True) as session:
        return await session.get(File, file_id)


async def delete_file(db: Database, file_id: UUID) -> bool:
    """Delete a file's row and those of its transforms; whether there was one.

    What was in storage is deleted by `job_file_cleanup`, once it is old enough, so a rollback loses nothing. `db` is
    what it is for `create_or_update_file`.

    >>> async def forget(session, file_id):
    ...     await delete_file(session, file_id)
    ...     await session.commit()
    """
    async with session_on(db) as session:
        deleted = await session.scalar(delete(File).where(File.id == file_id).returning(File.id))
        # The foreign key has done this already, except on an SQLite connection that does not look at foreign keys.
        await session.execute(delete(File).where(File.original_id == file_id))
    return deleted is not None


def _check_name(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidFile("name", f"must be text, not {type(name).__name__}")
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise InvalidFile("name", f"has {len(name)} characters; 1 to {MAX_NAME_LENGTH} are allowed")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise InvalidFile("name", "holds control characters or lone surrogates")
    return name


def _check_meta(meta: object) -> None:
    if meta is None:
        return
    if not isinstance(meta, Mapping):
        raise InvalidFile("meta", f"must be a mapping, not {type(meta).__name__}")
    try:
        check_payload(dict(meta))
    except InvalidJob as error:
        raise InvalidFile("meta", f"at {error.path}: {error.problem}" if error.path else error.problem) from None
