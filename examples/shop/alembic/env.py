"""The shop's own history. The tables of queue_kit come with revisions in it, so autogenerate has to know them."""

import asyncio

from alembic import context
from sqlalchemy import Connection

from queue_kit import engine_from_url, migrate
from shop.models import Base
from shop.settings import Settings

TARGETS = [Base.metadata, migrate.metadata, migrate.metadata_for("files"), migrate.metadata_for("sessions")]


def run(connection: Connection) -> None:
    """Run what was asked for on a connection."""
    context.configure(connection=connection, target_metadata=TARGETS)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_run() -> None:
    """The same for somebody who typed `alembic`."""
    engine = engine_from_url(Settings.from_environment().database_url)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(connect_and_run())
