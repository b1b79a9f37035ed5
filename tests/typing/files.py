"""The file store as an application uses it: the type checkers read this, nothing runs it."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

from obstore.store import S3Store
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from starlette.requests import Request
from starlette.responses import Response

from queue_kit import Handlers
from queue_kit.contrib.files import File, FileStore, create_or_update_file, delete_file, file_jobs, get_file
from queue_kit.contrib.files.starlette import send_file


class MyStore(FileStore):
    """An application's own."""


store: FileStore = FileStore(S3Store("bucket"), prefix="app/", max_file_bytes=None)
own: MyStore = MyStore.local(Path("uploads"), part_bytes=8_000_000)

jobs = Handlers()
jobs.include(file_jobs(store))


async def pieces() -> AsyncIterator[bytes]:
    """An upload in pieces."""
    yield b""


async def upload(session: AsyncSession, connection: AsyncConnection, engine: AsyncEngine) -> list[File]:
    """Through each kind of database, from each kind of source."""
    return [
        await create_or_update_file(session, store, name="a", source=b"", allowed_content_types=["image/*"]),
        await create_or_update_file(connection, store, name="b", source=Path("b"), meta={"alt_text": "b"}),
        await create_or_update_file(engine, store, name="c", source=pieces(), file_id=UUID(int=3)),
    ]


async def show(request: Request, engine: AsyncEngine, file_id: UUID) -> Response | None:
    """Send a file, and forget it."""
    file = await get_file(engine, file_id)
    deleted: bool = await delete_file(engine, file_id)
    return None if file is None or not deleted else await send_file(request, store, file, download=True)
