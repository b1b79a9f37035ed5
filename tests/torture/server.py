"""The PostgreSQL of a run: a server of its own that crashes when it is told to and keeps what it has acknowledged, or
somebody's, in a database of its own.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.faults.server import OwnServer, own_server

AS_IN_PRODUCTION = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


@dataclass(frozen=True, slots=True)
class Server:
    """Where the run's database is, and the server if it is ours to restart."""

    url: URL
    own: OwnServer | None = None

    async def crash(self) -> None:
        """Let it end without a word and start again; it recovers from its log."""
        assert self.own is not None
        await self.own.restart("immediate", **AS_IN_PRODUCTION)


@contextlib.asynccontextmanager
async def durable_server() -> AsyncIterator[Server]:
    async with own_server() as own:
        await own.restart(**AS_IN_PRODUCTION)
        yield Server(own.url, own)


@contextlib.asynccontextmanager
async def somebodys_server(dsn: str) -> AsyncIterator[Server]:
    url, name = make_url(dsn), f"torture_{uuid4().hex[:12]}"
    admin = create_async_engine(url, isolation_level="AUTOCOMMIT")
    try:
        async with admin.connect() as connection:
            await connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield Server(url.set(database=name))
    finally:
        async with admin.connect() as connection:
            await connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.dispose()
