"""What the tests have in common: the applications' tables, beside those of the queue."""

from collections.abc import Awaitable, Callable

import aiohttp_app
import fastapi_app
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine


@pytest.fixture(scope="session")
def queue_kit_prepare() -> Callable[[AsyncEngine], Awaitable[None]]:
    """Fill the template from which each test's database is copied."""

    async def prepare(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            for base in (aiohttp_app.Base, fastapi_app.Base):
                await connection.run_sync(base.metadata.create_all)

    return prepare
