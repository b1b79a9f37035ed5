"""The PostgreSQL server that is measured, and a database on it for each run.

It is the one that is given, else one of our own, made as the tests make theirs but durable.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest.mock import patch

import asyncpg
from sqlalchemy import make_url

from benchmarks import machine
from tests import postgres

# What a small server of one's own would have; the rest is PostgreSQL's default.
OWN_SETTINGS = {"max_connections": 200, "shared_buffers": "1GB", "max_wal_size": "4GB"}
REPORTED = (
    "server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_level", "shared_buffers", "max_wal_size",
    "max_connections", "autovacuum",
)  # fmt: skip
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
IN_MEMORY = {"tmpfs", "ramfs"}


def driver_url(url: str) -> str:
    """A URL as drivers take it: `postgresql://...`."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def alchemy_url(url: str) -> str:
    """A URL as SQLAlchemy takes it."""
    return make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def maintenance_url(url: str) -> str:
    """The URL of the server's own database, where nothing counts as the queue's."""
    return make_url(url).set(database="postgres").render_as_string(hide_password=False)


@contextlib.contextmanager
def serving(url: str | None) -> Iterator[str]:
    """The server's URL, as drivers take it."""
    if url:
        yield driver_url(url)
    else:
        on_disk = Path(tempfile.gettempdir())  # in memory, where the tests' server lies, a commit waits for nothing
        with patch.dict(postgres.SETTINGS, OWN_SETTINGS, clear=True), postgres.postgres(folder=on_disk) as own:
            yield driver_url(own)


@contextlib.asynccontextmanager
async def database(server: str) -> AsyncIterator[str]:
    """A database of its own, dropped at the end; yields its URL."""
    name = f"qk_bench_{os.getpid()}_{uuid.uuid4().hex[:12]}"
    await execute(server, f"CREATE DATABASE {name}")
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        await execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(url: str, *statements: str) -> None:
    """Execute statements, each committed by itself."""
    async with connected(url) as connection:
        for statement in statements:
            await connection.execute(statement)


async def settings(server: str) -> dict[str, str]:
    """What the server says about itself, as far as it matters here, and on what its files lie, if they are here."""
    async with connected(server) as connection:
        rows = await connection.fetch(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY($1)", [*REPORTED, "data_directory"]
        )
    found = {str(name): str(value) for name, value in rows}
    kind = machine.file_system(Path(found.pop("data_directory", "")))  # told to superusers only
    if kind is not None:
        found["file_system"] = kind
    return dict(sorted(found.items()))


def durable(found: dict[str, str]) -> bool:
    """Whether a commit that was acknowledged survives a crash of the server's machine."""
    return found.get("file_system") not in IN_MEMORY and all(found[name] != "off" for name in DURABLE)
