"""The session store's tables come with their extra alone, and fit what the library says of them."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import SchemaMismatch, migrate
from queue_kit.contrib.sessions import SessionRow
from tests.database.session_stores import Cart, cart_store

OURS = {"queue_kit_session", "queue_kit_session_token", "queue_kit_sessions_alembic_version"}


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


async def check(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await migrate.check_schema(connection, "sessions")


async def test_a_user_of_the_queue_alone_has_no_table_of_sessions(engine):
    assert not OURS & await tables(engine)
    with pytest.raises(SchemaMismatch, match="the tables of sessions are missing: run `queue-kit migrate --with"):
        await check(engine)


async def test_the_revision_makes_what_the_models_say_and_takes_it_back(engine):
    await migrate.upgrade(engine, ["sessions"])
    await check(engine)

    def differences(connection: Connection) -> list[object]:
        metadata = migrate.metadata_for("sessions")
        assert set(metadata.tables) == OURS
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
        }
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await cart_store().create(engine, Cart())
    before = await tables(engine)
    await migrate.downgrade(engine, extra="sessions")
    assert before - await tables(engine) == OURS
    await migrate.upgrade(engine, ["sessions"])
    assert SessionRow.__tablename__ in await tables(engine)
