# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The file store as an application uses it: the type checkers read this, nothing runs it. A line that ends in an
`ignore` must stay an error."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import assert_type
from uuid import UUID

from obstore.store import S3Store
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from starlette.requests import Request
from starlette.responses import Response

from queue_kit import Handlers
from queue_kit.contrib.files import (
    Chosen,
    File,
    FileStore,
    choose_image,
    create_or_update_file,
    delete_file,
    file_jobs,
    get_file,
)
from queue_kit.contrib.files.starlette import send_file


class MyStore(FileStore):
    """An application's own."""


store = FileStore(S3Store("bucket"), prefix="app/", max_file_bytes=None)
assert_type(MyStore.local(Path("uploads"), part_bytes=8_000_000), MyStore)
assert_type(MyStore.memory(), MyStore)
FileStore("uploads")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

jobs = Handlers()
jobs.include(assert_type(file_jobs(store), Handlers))


async def pieces() -> AsyncIterator[bytes]:
    """An upload in pieces."""
    yield b""


async def upload(session: AsyncSession, connection: AsyncConnection, engine: AsyncEngine) -> None:
    """Through each kind of database, from each kind of source."""
    create = create_or_update_file
    assert_type(await create(session, store, name="a", source=b"", allowed_content_types=["image/*"]), File)
    assert_type(await create(connection, store, name="b", source=Path("b"), meta={"alt_text": "b"}), File)
    assert_type(await create(engine, store, name="c", source=pieces(), file_id=UUID(int=3)), File)
    await create(engine, store, name="d", source="text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def show(request: Request, engine: AsyncEngine, file_id: UUID) -> None:
    """Send a file, and forget it."""
    file = await get_file(engine, file_id)
    assert_type(file, File | None)
    await send_file(request, store, file)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert file is not None
    assert_type(await send_file(request, store, file, download=True), Response)
    assert_type(await choose_image(engine, store, file, width=64, format="webp"), Chosen)
    assert_type(await delete_file(engine, file_id), bool)
