"""What the file store's tests need: the table on each database, and a store of each kind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import migrate
from queue_kit.contrib.files import FileStore


@pytest.fixture
async def files(engine: AsyncEngine) -> AsyncEngine:
    """An engine on a database with the queue's tables and the file store's."""
    await migrate.upgrade(engine, extras=["files"])
    return engine


@pytest.fixture
async def session(files: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A session on that database."""
    async with AsyncSession(files, expire_on_commit=False) as made:
        yield made


@pytest.fixture
def local(tmp_path: Path) -> FileStore:
    """A store in a folder."""
    return FileStore.local(tmp_path / "uploads")
