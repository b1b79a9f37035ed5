"""The file store's table comes by its own migration, only when it is asked for, and is what the model says."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import SchemaMismatch, migrate
from queue_kit.contrib.files import FileStore, create_or_update_file
from queue_kit.contrib.files.models import Base

OURS = {"queue_kit_file", "queue_kit_files_alembic_version"}


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


def differences(connection: Connection) -> list[object]:
    """What autogenerate would put into a next revision."""
    options = {
        "compare_type": True,
        "compare_server_default": True,
        "include_name": lambda name, kind, _: kind != "table" or name in Base.metadata.tables,
    }
    return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


async def test_who_uses_the_queue_alone_gets_no_table(engine):
    assert not OURS & await tables(engine)
    with pytest.raises(SchemaMismatch, match="queue-kit migrate --with files"):
        async with engine.connect() as connection:
            await migrate.check_schema(connection, "files")


async def test_the_migration_makes_what_the_model_says(engine):
    before = await tables(engine)
    for _ in range(2):
        await migrate.upgrade(engine, extras=["files"])
    assert await tables(engine) == before | OURS
    async with engine.connect() as connection:
        await migrate.check_schema(connection, "files")
        assert await connection.run_sync(differences) == []
    await create_or_update_file(engine, FileStore.memory(), name="x", source=b"x")
    await migrate.downgrade(engine, extra="files")
    assert not OURS & await tables(engine)


async def test_a_difference_would_be_found(engine):
    await migrate.upgrade(engine, extras=["files"])
    async with engine.connect() as connection:
        await connection.exec_driver_sql("ALTER TABLE queue_kit_file ADD COLUMN forgotten INTEGER")
        assert [each[0] for each in await connection.run_sync(differences)] == ["remove_column"]
        await connection.rollback()


async def test_it_runs_inside_of_an_applications_own_history(engine):
    def run(connection: Connection, revision: object, to: int) -> None:
        revision(Operations(MigrationContext.configure(connection)), to=to, extra="files")

    async with engine.begin() as connection:
        await connection.run_sync(run, migrate.upgrade_in_revision, 1)
    assert await tables(engine) >= OURS
    async with engine.begin() as connection:
        await connection.run_sync(run, migrate.downgrade_in_revision, 0)
    assert not OURS & await tables(engine)


def test_an_application_can_keep_its_autogenerate_away_from_the_table():
    assert set(migrate.metadata_for("files").tables) == OURS
