"""Alembic's entry into queue_kit's migrations in a checkout: `alembic upgrade head`, `alembic check` and the rest.

The database is `QUEUE_KIT_DATABASE_URL`, else `sqlalchemy.url` of alembic.ini. The version table is queue_kit's own,
so an application's history stays apart.
"""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from queue_kit import _revisions, migrate
from queue_kit._engine import read_url
from queue_kit.cli.database import engine_for


def _migrate(connection: Connection) -> None:
    _revisions.take_turn(connection)
    context.configure(connection=connection, **migrate.configuration())
    with context.begin_transaction():
        context.run_migrations()


async def _connect_and_migrate(url: str) -> None:
    engine = engine_for(read_url(url), create=True)
    async with engine.begin() as connection:
        await connection.run_sync(_migrate)
    await engine.dispose()


def _main() -> None:
    url = os.environ.get("QUEUE_KIT_DATABASE_URL") or context.config.get_main_option("sqlalchemy.url")
    if not url:
        raise SystemExit("no database: set QUEUE_KIT_DATABASE_URL, or sqlalchemy.url in alembic.ini")
    if context.is_offline_mode():
        context.configure(url=read_url(url), literal_binds=True, **migrate.configuration())
        with context.begin_transaction():
            context.run_migrations()
    else:
        asyncio.run(_connect_and_migrate(url))


_main()
