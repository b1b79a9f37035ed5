"""The schema and the ways to it: from code, by `alembic` in a checkout, inside an application's own history; and what
the database itself promises about rows that plain SQL puts there."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from queue_kit import ConfigurationError, SchemaMismatch, _revisions, migrate
from tests.conftest import engine_for
from tests.database.running import raw, waits_for_a_lock
from tests.support import until

CHECKOUT = Path(__file__).resolve().parents[2]
OURS = {f"queue_kit_{name}" for name in ("job", "cron", "worker", "history", "schema", "alembic_version")}
FUTURE = "2999-01-01 00:00:00.000000"


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


async def check(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await migrate.check_schema(connection)


def run(*command: str | Path, url: str, cwd: Path, status: int = 0) -> str:
    """Run a command to its end; returns what it wrote."""
    environment = {**os.environ, "QUEUE_KIT_DATABASE_URL": url}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


# --- from code --------------------------------------------------------------------------------------------------------


async def test_what_is_no_engine_and_no_connection_is_refused_by_its_name(empty_engine):
    async with empty_engine.connect() as connection, AsyncSession(empty_engine) as session:
        for wrong in ("sqlite:///app.db", empty_engine.sync_engine, connection, session, None):
            named = rf"^engine must be an AsyncEngine, not {type(wrong).__name__}$"
            for call in (migrate.upgrade, migrate.downgrade, migrate.schema_version):
                with pytest.raises(TypeError, match=named):
                    await call(wrong)
    for wrong in (empty_engine, empty_engine.sync_engine, "sqlite:///app.db"):
        for extra in (None, "files"):
            with pytest.raises(
                TypeError, match=rf"^connection must be an AsyncConnection, not {type(wrong).__name__}$"
            ):
                await migrate.check_schema(wrong, extra)


async def test_upgrade_makes_what_a_worker_needs_and_a_second_one_changes_nothing(empty_engine):
    assert await migrate.schema_version(empty_engine) is None
    await migrate.upgrade(empty_engine)
    assert await tables(empty_engine) == OURS
    assert await migrate.schema_version(empty_engine) == migrate.VERSION
    await check(empty_engine)
    await raw(empty_engine, "INSERT INTO queue_kit_job (name) VALUES ('kept')")
    await migrate.upgrade(empty_engine)
    assert await raw(empty_engine, "SELECT name FROM queue_kit_job") == [("kept",)]
    assert await raw(empty_engine, "SELECT version_num FROM queue_kit_alembic_version") == [(f"{migrate.VERSION:04d}",)]


async def test_downgrade_leaves_nothing_and_upgrade_comes_back(engine):
    await migrate.downgrade(engine)
    assert await tables(engine) == set()
    await migrate.downgrade(engine)
    await migrate.upgrade(engine)
    await check(engine)


async def test_from_version_1_every_job_is_kept_and_every_index_is_built(engine):
    await raw(engine, "INSERT INTO queue_kit_job (name, unique_key) VALUES ('kept', 'k')")
    await migrate.downgrade(engine, to=1)
    assert await migrate.schema_version(engine) == 1
    assert await tables(engine) == OURS - {"queue_kit_history"}
    await migrate.upgrade(engine)
    assert await migrate.schema_version(engine) == 2
    assert await tables(engine) == OURS
    assert await raw(engine, "SELECT name, unique_key FROM queue_kit_job") == [("kept", "k")]
    async with engine.connect() as connection:
        found = await connection.run_sync(lambda sync: inspect(sync).get_indexes("queue_kit_job"))
    new = {"queue_kit_job_key", "queue_kit_job_cron", "queue_kit_job_cancelled", "queue_kit_job_failed_name"}
    assert new <= {index["name"] for index in found}


async def test_a_failed_migration_leaves_nothing_behind(empty_engine):
    await raw(empty_engine, "CREATE TABLE queue_kit_schema (mine INTEGER)")
    with pytest.raises(DBAPIError, match="already exists"):
        await migrate.upgrade(empty_engine)
    assert await tables(empty_engine) == {"queue_kit_schema"}


async def test_migrators_at_once_do_not_fight(empty_database_url):
    engines = [engine_for(empty_database_url) for _ in range(4)]
    await asyncio.gather(*map(migrate.upgrade, engines))
    await check(engines[0])
    await asyncio.gather(*map(migrate.downgrade, engines))
    assert await tables(engines[0]) == set()
    for engine in engines:
        await engine.dispose()


@pytest.mark.parametrize("level", ["default", "AUTOCOMMIT", "SERIALIZABLE"])
async def test_migrators_on_engines_of_an_application_do_not_fight_either(empty_database_url, level):
    options = {} if level == "default" else {"isolation_level": level}
    engines = [create_async_engine(empty_database_url, **options) for _ in range(4)]
    await asyncio.gather(*map(migrate.upgrade, engines))
    await check(engines[0])
    for engine in engines:
        await engine.dispose()


async def test_two_databases_are_migrated_at_once_in_one_process(server, tmp_path):
    async with server.fresh("template0") as one, server.fresh("template0") as two:
        engines = [engine_for(url) for url in (one, two, f"sqlite:///{tmp_path / 'three.db'}")]
        await asyncio.gather(*map(migrate.upgrade, engines))
        for engine in engines:
            await check(engine)
            await engine.dispose()


async def test_two_processes_do_not_fight(empty_database_url, tmp_path):
    command = [sys.executable, "-m", "queue_kit", "migrate"]
    migrations = (asyncio.to_thread(run, *command, url=empty_database_url, cwd=tmp_path) for _ in range(2))
    await asyncio.gather(*migrations)


async def test_one_connection_is_enough_and_comes_back_to_the_pool_as_it_was(empty_postgres_url):
    engine = create_async_engine(empty_postgres_url, pool_size=1, max_overflow=0, isolation_level="AUTOCOMMIT")
    await migrate.upgrade(engine)
    async with engine.connect() as connection:
        assert await connection.scalar(text("SHOW lock_timeout")) == "0"
        assert (await connection.get_raw_connection()).driver_connection.is_in_transaction() is False
    await engine.dispose()


async def test_a_migration_does_not_wait_for_long_behind_a_lock(pg_engine, monkeypatch):
    monkeypatch.setattr(_revisions, "LOCK_TIMEOUT", "50ms")
    async with pg_engine.begin() as connection:
        await connection.execute(text("LOCK TABLE queue_kit_job"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await migrate.downgrade(pg_engine)
    assert await tables(pg_engine) == OURS


async def test_unknown_names_and_versions_are_refused(engine):
    for extras in (["films"], "films"):
        with pytest.raises(ConfigurationError, match=r"unknown extra 'films'; those with tables are files, sessions"):
            await migrate.upgrade(engine, extras)
    with pytest.raises(ConfigurationError, match=r"to=7 is no schema version; known are 0 \(no tables\) to 2"):
        await migrate.downgrade(engine, 7)


async def test_a_newer_database_is_left_alone(engine):
    await raw(engine, "UPDATE queue_kit_alembic_version SET version_num = '0003'")
    await migrate.upgrade(engine)
    with pytest.raises(ConfigurationError, match="at version 3"):
        await migrate.downgrade(engine)
    assert await tables(engine) == OURS


async def test_tables_that_were_dropped_by_hand_are_named_with_the_mend(engine):
    for table in OURS - {"queue_kit_alembic_version"}:
        await raw(engine, f"DROP TABLE {table}")
    with pytest.raises(ConfigurationError, match="drop it as well, then migrate again"):
        await migrate.upgrade(engine)
    await raw(engine, "DROP TABLE queue_kit_alembic_version")
    await migrate.upgrade(engine)
    await check(engine)


async def test_the_tables_lie_where_the_connection_looks(postgres_url):
    settings = {"server_settings": {"search_path": "jobs"}}
    there, here = create_async_engine(postgres_url, connect_args=settings), create_async_engine(postgres_url)
    await migrate.downgrade(here)
    await raw(here, "CREATE SCHEMA jobs")
    await migrate.upgrade(there)
    await check(there)
    with pytest.raises(SchemaMismatch):
        await check(here)
    # A trigger's functions are found by whoever inserts, wherever they look.
    await raw(here, f"INSERT INTO jobs.queue_kit_job (name, scheduled_at) VALUES ('x', '{FUTURE}')")
    assert await raw(here, "SELECT status FROM jobs.queue_kit_job") == [(0,)]
    await there.dispose()
    await here.dispose()


# --- which versions fit -----------------------------------------------------------------------------------------------


async def test_missing_tables_are_named_and_the_transaction_goes_on(empty_engine):
    async with empty_engine.begin() as connection:
        with pytest.raises(SchemaMismatch) as caught:
            await migrate.check_schema(connection)
        assert await connection.scalar(text("SELECT 1")) == 1
    assert (caught.value.found, caught.value.needed) == (None, migrate.VERSION)
    for way in ("`queue-kit migrate`", "queue_kit.migrate.upgrade(engine)", "upgrade_in_revision(op, to=2)"):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    ("version", "compatible_from", "problem"),
    [
        (0, 0, r"is at version 0, this queue_kit needs 2: run `queue-kit migrate`"),
        (1, 1, r"is at version 1, this queue_kit needs 2: run `queue-kit migrate`"),
        (2, 1, None),
        (4, 1, None),
        (4, 2, None),
        (4, 3, r"schema 4 needs a queue_kit for version 3 or later, not for 2: upgrade queue-kit"),
    ],
)
async def test_old_and_new_versions_overlap_as_far_as_the_schema_says(engine, version, compatible_from, problem):
    await raw(engine, "DELETE FROM queue_kit_schema")
    await raw(engine, f"INSERT INTO queue_kit_schema VALUES ({version}, {compatible_from})")
    if problem is None:
        await check(engine)
    else:
        with pytest.raises(SchemaMismatch, match=problem) as caught:
            await check(engine)
        assert (caught.value.found, caught.value.needed) == (version, migrate.VERSION)


# --- `alembic` in a checkout ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (CHECKOUT / "alembic.ini").exists(), reason="there is no alembic.ini: not a checkout")
class TestInACheckout:
    @staticmethod
    def alembic(*arguments: str, url: str, status: int = 0) -> str:
        return run(sys.executable, "-m", "alembic", *arguments, url=url, cwd=CHECKOUT, status=status)

    async def test_upgrade_check_and_downgrade(self, empty_engine, empty_database_url):
        await raw(empty_engine, "CREATE TABLE somebody_elses (id INTEGER)")
        await migrate.upgrade(empty_engine)
        assert "No new upgrade operations detected" in self.alembic("check", url=empty_database_url)
        self.alembic("downgrade", "base", url=empty_database_url)
        assert await tables(empty_engine) == {"somebody_elses", "queue_kit_alembic_version"}
        self.alembic("upgrade", "head", url=empty_database_url)
        await check(empty_engine)
        await migrate.upgrade(empty_engine)
        assert await tables(empty_engine) == OURS | {"somebody_elses"}

    async def test_the_plain_forms_of_a_url_do(self, tmp_path):
        self.alembic("upgrade", "head", url=f"sqlite:///{tmp_path / 'plain.db'}")
        assert "CREATE TABLE queue_kit_job" in self.alembic("upgrade", "head", "--sql", url="postgres://u@h/d")

    async def test_two_at_once_do_not_fight(self, empty_engine, empty_database_url):
        upgrades = (asyncio.to_thread(self.alembic, "upgrade", "head", url=empty_database_url) for _ in range(2))
        await asyncio.gather(*upgrades)
        await check(empty_engine)

    async def test_it_waits_for_its_turn(self, empty_postgres_url):
        engine = create_async_engine(empty_postgres_url)
        async with engine.begin() as connection:
            await connection.run_sync(_revisions.take_turn)
            upgrade = asyncio.create_task(asyncio.to_thread(self.alembic, "upgrade", "head", url=empty_postgres_url))
            await until(lambda: waits_for_a_lock(engine))
        await upgrade
        await check(engine)
        await engine.dispose()

    def test_the_folder_never_becomes_a_package(self):
        found = [path.name for path in (CHECKOUT / "alembic").rglob("__init__.py")]
        assert found == [], "it would shadow the installed alembic"


# --- inside an application's own history ------------------------------------------------------------------------------

INI = """
[alembic]
script_location = %(here)s/migrations
path_separator = os
prepend_sys_path = .
"""
MODEL = """
from sqlalchemy import String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(20), server_default=text("'new'"))
"""
ENV = """
import asyncio, os
from alembic import context
from model import Base
from sqlalchemy.ext.asyncio import create_async_engine
from queue_kit import migrate

url = os.environ["QUEUE_KIT_DATABASE_URL"]
target = dict(target_metadata=[Base.metadata, migrate.metadata], compare_type=True, compare_server_default=True)

def run(connection):
    context.configure(connection=connection, **target)
    with context.begin_transaction():
        context.run_migrations()

async def online():
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()

if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, **target)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(online())
"""
FIRST = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "a1", None

def upgrade():
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("state", sa.String(20), server_default=sa.text("'new'"), nullable=False),
    )

def downgrade():
    op.drop_table("orders")
"""
SECOND = """
from alembic import op
from queue_kit import migrate

revision, down_revision = "a2", "a1"

def upgrade():
    migrate.upgrade_in_revision(op, to=2)
    op.execute("INSERT INTO queue_kit_job (name) VALUES ('from.a.migration')")

def downgrade():
    migrate.downgrade_in_revision(op, to=0, start=2)
"""


@pytest.fixture
def application(tmp_path: Path, empty_database_url: str) -> Callable[..., str]:
    """An application's Alembic project: a function that runs `alembic` in it."""
    folder = tmp_path / "application"
    (folder / "migrations" / "versions").mkdir(parents=True)
    files = {"alembic.ini": INI, "model.py": MODEL, "migrations/env.py": ENV}
    files |= {"migrations/versions/a1.py": FIRST, "migrations/versions/a2.py": SECOND}
    for name, content in files.items():
        (folder / name).write_text(textwrap.dedent(content))

    def alembic(*arguments: str, status: int = 0) -> str:
        return run(sys.executable, "-m", "alembic", *arguments, url=empty_database_url, cwd=folder, status=status)

    return alembic


DELETE_JOBS = "DELETE FROM queue_kit_job"


async def test_the_tables_live_in_an_applications_history(application, empty_engine):
    application("upgrade", "head")
    await check(empty_engine)
    assert await raw(empty_engine, "SELECT name FROM queue_kit_job") == [("from.a.migration",)]
    assert "No new upgrade operations detected" in application("check")
    await migrate.upgrade(empty_engine)
    await raw(empty_engine, DELETE_JOBS)  # it would not be lost silently
    application("downgrade", "a1")
    assert await tables(empty_engine) == {"orders", "alembic_version"}
    application("upgrade", "head")
    await check(empty_engine)


async def test_a_history_takes_over_what_was_migrated_before(application, empty_engine):
    await migrate.upgrade(empty_engine)
    application("upgrade", "head")
    assert await raw(empty_engine, "SELECT count(*) FROM queue_kit_schema") == [(2,)]
    await raw(empty_engine, DELETE_JOBS)
    application("downgrade", "base")
    assert await tables(empty_engine) == {"alembic_version"}


async def test_a_history_starts_after_alembic_left_an_empty_version_table(application, empty_engine):
    async with empty_engine.begin() as connection:
        await connection.run_sync(migrate.metadata.tables["queue_kit_alembic_version"].create)
    application("upgrade", "head")
    await check(empty_engine)


async def test_a_history_as_sql(application, empty_engine, empty_database_url):
    up = application("upgrade", "head", "--sql")
    await run_script(empty_database_url, up)
    await check(empty_engine)
    assert await raw(empty_engine, "SELECT version_num FROM queue_kit_alembic_version") == [(f"{migrate.VERSION:04d}",)]
    await migrate.upgrade(empty_engine)
    assert "No new upgrade operations detected" in application("check")
    await run_script(empty_database_url, application("downgrade", "a2:a1", "--sql"))
    assert await tables(empty_engine) == {"orders", "alembic_version"}


async def run_script(url: str, script: str) -> None:
    database = make_url(url)
    if database.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(database.database))) as connection:
            connection.executescript(script)
    else:
        dsn = database.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(dsn)
        await connection.execute(script)
        await connection.close()


async def test_in_a_revision_unknown_versions_and_a_missing_start_are_refused(engine):
    def refusals(connection: Any) -> None:
        online = Operations(MigrationContext.configure(connection))
        for move in (migrate.upgrade_in_revision, migrate.downgrade_in_revision):
            for to in (3, -1, "1", None):
                with pytest.raises(ConfigurationError, match=r"is no schema version; known are 0 \(no tables\) to 2"):
                    move(online, to=to)
        offline = Operations(MigrationContext.configure(connection, opts={"as_sql": True}))
        with pytest.raises(ConfigurationError, match=r"say downgrade_in_revision\(\.\.\., start=\.\.\.\)"):
            migrate.downgrade_in_revision(offline, to=0)
        with pytest.raises(ConfigurationError, match="start=3 is no schema version"):
            migrate.upgrade_in_revision(offline, to=1, start=3)

    async with engine.connect() as connection:
        await connection.run_sync(refusals)
    await check(engine)


# --- what the database promises of any row ----------------------------------------------------------------------------


async def test_a_plain_insert_is_a_complete_job(engine):
    await raw(engine, "INSERT INTO queue_kit_job (name) VALUES ('x')")
    rows = await raw(engine, "SELECT status, priority, retry_count, lost, claim_no, data FROM queue_kit_job")
    assert [(*row[:5], str(row[5])) for row in rows] == [(1, 5, 0, 0, 0, "{}")]


async def test_plain_sql_is_placed_by_the_database(engine):
    await raw(engine, f"INSERT INTO queue_kit_job (name, scheduled_at) VALUES ('later', '{FUTURE}')")
    await raw(engine, "INSERT INTO queue_kit_job (name) VALUES ('now'), ('moved')")
    await raw(engine, f"UPDATE queue_kit_job SET scheduled_at = '{FUTURE}' WHERE name = 'moved'")
    rows = await raw(engine, "SELECT name, status FROM queue_kit_job ORDER BY id")
    assert rows == [("later", 0), ("now", 1), ("moved", 0)]


async def test_a_finished_job_is_not_placed_again(engine):
    columns = "INSERT INTO queue_kit_job (name, status, scheduled_at)"
    await raw(engine, f"{columns} VALUES ('done', 2, '{FUTURE}')")
    await raw(engine, f"UPDATE queue_kit_job SET scheduled_at = '{FUTURE}'")
    assert await raw(engine, "SELECT status FROM queue_kit_job") == [(2,)]


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""},
        {"name": None},
        {"priority": -1},
        {"status": -1},
        {"status": 5},
        {"handler_timeout": -0.5},
    ],
    ids=str,
)
async def test_no_row_breaks_a_check(engine, values):
    values = {"name": "x", **values}
    columns, parameters = ", ".join(values), ", ".join(f":{name}" for name in values)
    with pytest.raises(IntegrityError):
        await raw(engine, f"INSERT INTO queue_kit_job ({columns}) VALUES ({parameters})", **values)


async def test_not_a_number_is_no_timeout(engine):
    with pytest.raises(IntegrityError):
        await raw(engine, "INSERT INTO queue_kit_job (name, handler_timeout) VALUES ('x', 'NaN')")


async def test_an_unlimited_timeout_is_one(engine):
    insert = "INSERT INTO queue_kit_job (name, handler_timeout) VALUES ('x', :timeout)"
    await raw(engine, insert, timeout=float("inf"))
    assert await raw(engine, "SELECT handler_timeout FROM queue_kit_job") == [(float("inf"),)]


async def test_the_table_has_room_in_its_pages_and_is_vacuumed_by_count_without_pauses(pg_engine):
    [(options,)] = await raw(pg_engine, "SELECT reloptions FROM pg_class WHERE oid = 'queue_kit_job'::regclass")
    settings = dict(each.split("=") for each in options)
    assert settings["fillfactor"] == "50"
    shares = {name: value for name, value in settings.items() if name.endswith("_scale_factor")}
    assert shares == dict.fromkeys(
        (f"autovacuum_{what}_scale_factor" for what in ("vacuum", "vacuum_insert", "analyze")), "0"
    )
    assert settings["autovacuum_vacuum_cost_delay"] == "0"


@pytest.mark.parametrize("column", ["unique_key", "cron_name"])
async def test_one_live_job_holds_a_key(engine, column):
    insert = f"INSERT INTO queue_kit_job (name, {column}, status) VALUES ('x', 'k', :status)"
    for status in (2, 3, 4, 1, 2):
        await raw(engine, insert, status=status)
    for status in (0, 1):
        with pytest.raises(IntegrityError):
            await raw(engine, insert, status=status)


async def test_an_id_is_never_given_twice(engine):
    await raw(engine, "INSERT INTO queue_kit_job (name) VALUES ('x'), ('y')")
    [(last,)] = await raw(engine, "SELECT max(id) FROM queue_kit_job")
    await raw(engine, "DELETE FROM queue_kit_job")
    await raw(engine, "INSERT INTO queue_kit_job (name) VALUES ('z')")
    [(id_,)] = await raw(engine, "SELECT id FROM queue_kit_job")
    assert id_ > last


@pytest.mark.parametrize("asleep", [True, False])
async def test_a_plain_insert_notifies_at_its_commit_when_a_worker_sleeps(pg_engine, postgres_url, asleep):
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(make_url(postgres_url).set(drivername="postgresql").render_as_string(False))
    await listener.add_listener("queue_kit_job", lambda *arguments: heard.put_nowait(arguments[-1]))
    async with pg_engine.begin() as connection:
        worker = (
            "INSERT INTO queue_kit_worker (id, label, host, pid, names, idle_until) "
            "VALUES (gen_random_uuid(), '', '', 1, '[]', {})"
        )
        await connection.execute(text(worker.format(f"clock_timestamp() {'+' if asleep else '-'} interval '1 minute'")))
        await connection.execute(text(worker.format("NULL")))
    async with pg_engine.begin() as connection:
        await connection.execute(text("INSERT INTO queue_kit_job (name) VALUES ('x'), ('y')"))
        await connection.execute(text("INSERT INTO queue_kit_job (name) VALUES ('z')"))
        await asyncio.sleep(0.05)
        assert heard.empty()
    await listener.execute("NOTIFY queue_kit_job, 'last'")
    expected = ["", "last"] if asleep else ["last"]
    assert [await asyncio.wait_for(heard.get(), 10) for _ in expected] == expected
    assert heard.empty()
    await listener.close()
