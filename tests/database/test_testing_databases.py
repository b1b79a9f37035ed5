"""The databases that pytest's plugin hands out."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import ConfigurationError, add_job, list_jobs, migrate
from queue_kit.testing._databases import Databases, engine_for
from tests.conftest import Server


async def make_table(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mine (number INTEGER)"))


async def there(database: Server | Path, folder: Path, databases: Databases) -> list[str]:
    """What `databases` has made and not removed."""
    if isinstance(database, Path):
        return sorted(path.name for path in folder.iterdir())
    async with database.admin() as admin:
        rows = await admin.fetch(
            "SELECT datname FROM pg_database WHERE starts_with(datname, $1) ORDER BY 1", databases._name
        )
    return [row["datname"] for row in rows]


async def test_each_copy_is_migrated_prepared_and_removed(database: Server | Path, tmp_path: Path) -> None:
    folder = tmp_path / "databases"
    folder.mkdir()
    server = None
    if isinstance(database, Server):  # as people write it
        server = make_url(database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    databases = Databases(server, folder, make_table)
    assert await there(database, folder, databases) == []
    with databases.open():
        assert len(await there(database, folder, databases)) == 1
        with databases.fresh() as first, databases.fresh() as second:
            assert first != second
            for url in (first, second):
                engine = engine_for(url)
                assert await migrate.schema_version(engine) == migrate.VERSION
                async with engine.begin() as connection:
                    await connection.execute(text("INSERT INTO mine VALUES (1)"))
                assert await add_job(engine, "x") == 1
                assert len(await list_jobs(engine)) == 1
            assert len({name.split(".")[0] for name in await there(database, folder, databases)}) == 3
        assert len(await there(database, folder, databases)) == 1
    assert await there(database, folder, databases) == []


async def test_a_template_that_cannot_be_made_is_removed(database: Server | Path, tmp_path: Path) -> None:
    folder = tmp_path / "databases"
    folder.mkdir()

    async def fail(engine: AsyncEngine) -> None:
        raise LookupError("no tables")

    databases = Databases(database.url if isinstance(database, Server) else None, folder, fail)
    with pytest.raises(LookupError, match="no tables"), databases.open():
        pass
    assert await there(database, folder, databases) == []


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ("nonsense", "is no database URL; write postgresql://user@host/postgres"),
        ("mysql://u:secret@h/d", "on a PostgreSQL server, not on mysql; for SQLite"),  # pragma: allowlist secret
    ],
)
def test_a_server_that_cannot_serve_is_refused(server: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=problem) as refused:
        Databases(server, tmp_path, make_table)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("prepare", [None, lambda engine: None], ids=["a forgotten return", "not async"])
def test_what_cannot_prepare_a_template_is_refused(tmp_path: Path, prepare: Any) -> None:
    databases = Databases(None, tmp_path, prepare)
    with pytest.raises(ConfigurationError, match="queue_kit_prepare must return an async function"), databases.open():
        pass
    assert list(tmp_path.iterdir()) == []
