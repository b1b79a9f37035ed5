"""The schema: which version a database has, and the ways to bring it to another.

Our Alembic revisions run here without Alembic's process-wide proxies, so that two databases can be migrated at once in
one process. They keep a version table of their own, as `alembic upgrade head` does in a checkout; `upgrade_in_revision`
runs them inside an application's history instead. `queue_kit_schema` tells a worker what it meets.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Column,
    Connection,
    Inspector,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    event,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from queue_kit._statements import database
from queue_kit.errors import ConfigurationError, SchemaMismatch
from queue_kit.models import Base

VERSION = 2
"""The schema that this library was built for. Version N is Alembic's revision `f"{N:04d}"`."""

LOCK_TIMEOUT = "3s"
"""How long a migration waits for a table's lock on PostgreSQL: all that queues behind it waits as long."""

_MIGRATION_LOCK = 0x71_6B_6D_69_67_72  # an arbitrary number, the same in every process: "qkmigr"
_ASK_FOR_TURN = text(f"SELECT pg_try_advisory_lock({_MIGRATION_LOCK + 1})")  # to build indexes
_GIVE_UP_TURN = text(f"SELECT pg_advisory_unlock({_MIGRATION_LOCK + 1})")
_IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")

_HOW = (
    "run `queue-kit migrate`, or await queue_kit.migrate.upgrade(engine), or call "
    f"queue_kit.migrate.upgrade_in_revision(op, to={VERSION}) in a revision of your own Alembic history"
)


class AlembicOp(Protocol):
    """What a revision knows as `alembic.op`."""

    def get_context(self) -> MigrationContext: ...  # noqa: D102 - Alembic's


metadata: MetaData = Base.metadata
"""The queue's tables and its version table. In your `target_metadata` it makes autogenerate leave them alone."""

_version_table = Table(
    "queue_kit_alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="queue_kit_alembic_version_pkc"),
)


@event.listens_for(Table, "column_reflect")
def _see_identity(inspector: Inspector, table: Table, column: ReflectedColumn) -> None:
    # SQLite's AUTOINCREMENT stands for the identity, which autogenerate would otherwise miss at every run.
    if table.name == "queue_kit_job" and column["name"] == "id" and inspector.dialect.name == "sqlite":
        identity: Any = {"always": False}
        column.setdefault("identity", identity)


def script_location() -> Path:
    """The folder of the revisions: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "alembic", package.parent / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError("queue_kit's migrations were not found beside or inside the package; install it again")


def configuration() -> dict[str, Any]:
    """What `env.py` configures Alembic with: our tables and our version table, and no others of the database."""
    return {
        "target_metadata": metadata,
        "version_table": _version_table.name,
        "compare_type": True,
        "compare_server_default": True,
        "include_name": _is_ours,
    }


def _is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "table" or name in metadata.tables


async def check_schema(connection: AsyncConnection) -> None:
    """Raise `SchemaMismatch`, with the command that mends it, unless this library can work on the database's tables.

    A newer schema is fine as long as it says so, so that old and new processes overlap in a rolling deploy.

    >>> async def check(engine):
    ...     async with engine.connect() as connection:
    ...         await check_schema(connection)
    """
    found = await connection.run_sync(_schema)
    if found is None:
        raise SchemaMismatch(f"the queue's tables are missing: {_HOW}", found=None, needed=VERSION)
    version, compatible_from = found
    if compatible_from > VERSION:
        problem = f"needs a queue_kit for version {compatible_from} or later, not for {VERSION}: upgrade queue-kit"
        raise SchemaMismatch(f"the queue's schema {version} {problem}", found=version, needed=VERSION)
    if version < VERSION:
        problem = f"the queue's schema is at version {version}, this queue_kit needs {VERSION}: {_HOW}"
        raise SchemaMismatch(problem, found=version, needed=VERSION)


async def schema_version(engine: AsyncEngine) -> int | None:
    """The version of the queue's tables; `None` when there are none.

    >>> async def show(engine):
    ...     print(await schema_version(engine))
    """
    async with engine.connect() as connection:
        found = await connection.run_sync(_schema)
    return None if found is None else found[0]


def _schema(connection: Connection) -> tuple[int, int] | None:
    # Asked for by name: a query that fails would leave the caller's transaction aborted.
    if not inspect(connection).has_table("queue_kit_schema"):
        return None
    row = connection.execute(database.schema_version()).first()
    return None if row is None else (row.version, row.compatible_from)


async def upgrade(engine: AsyncEngine, extras: Iterable[str] = ()) -> None:
    """Bring the database to this library's schema; harmless when it is there or newer, and when two do it at once.

    `extras` names schemas of optional parts; there are none yet. Each version is one transaction. Raises
    `ConfigurationError` for an unknown extra, and what the driver raises, for instance when a table was locked for
    longer than `LOCK_TIMEOUT`.

    >>> async def deploy(engine):
    ...     await upgrade(engine)
    """
    unknown = sorted({extras} if isinstance(extras, str) else set(extras))
    if unknown:
        raise ConfigurationError(f"unknown extras: {', '.join(unknown)}; there are none yet")
    async with engine.connect() as connection:
        found = await connection.run_sync(lambda sync: _current(MigrationContext.configure(sync)))
    for version in range(min(found + 1, VERSION), VERSION + 1):
        await _build_indexes(engine, version)
        await _migrate(engine, version, down=False)


async def _build_indexes(engine: AsyncEngine, version: int) -> None:
    """Build what a revision names in `INDEXES` (name to `table (columns) WHERE ...`) while the tables are in use.

    The revision itself creates them `IF NOT EXISTS`, for the ways that cannot do this. What a killed run has left half
    built is dropped first. Who waits for the turn asks again and again, each time in a transaction of its own: a
    statement that waits is one that CREATE INDEX CONCURRENTLY waits for.
    """
    if version == 1 or engine.dialect.name != "postgresql":
        return
    indexes: Mapping[str, str] = getattr(_revision(version), "INDEXES", {})
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while not await connection.scalar(_ASK_FOR_TURN):  # noqa: ASYNC110 - another process has it
            await asyncio.sleep(0.2)
        try:
            for name, on in indexes.items():
                valid = await connection.scalar(_IS_VALID, {"name": name})
                if valid is False:
                    await connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
                if not valid:
                    await connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY {name} ON {on}")
        finally:
            await connection.execute(_GIVE_UP_TURN)


async def downgrade(engine: AsyncEngine, to: int = 0) -> None:
    """Bring the database back to an older schema; 0 drops everything, finished jobs included.

    Raises `ConfigurationError` for a version that does not exist, when the database is newer than this library, and
    when jobs that are not finished would be lost.

    >>> async def remove(engine):
    ...     await downgrade(engine)
    """
    _check_version(to, "to")
    await _migrate(engine, to, down=True)


async def _migrate(engine: AsyncEngine, to: int, *, down: bool) -> None:
    def run(connection: Connection) -> None:
        take_turn(connection)
        _move(MigrationContext.configure(connection), to, down=down)

    async with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # Whatever the engine's default: a snapshot from before our turn would show the old version.
            await connection.execution_options(isolation_level="READ COMMITTED")
        async with connection.begin():
            await connection.run_sync(run)


def take_turn(connection: Connection) -> None:
    """Wait until nobody else migrates this database, and keep others out until the transaction ends."""
    if connection.dialect.name == "postgresql":
        _lock(connection)
        _set_lock_timeout(connection, LOCK_TIMEOUT)
    else:
        # The engine may have begun, or not, as its listeners and its driver please.
        driver: Any = connection.connection.driver_connection
        if driver.in_transaction:
            connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _set_lock_timeout(connection: Connection, longest: str) -> None:
    connection.execute(text(f"SET LOCAL lock_timeout = '{longest}'"))


def _lock(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})


def upgrade_in_revision(op: AlembicOp, to: int, *, start: int | None = None) -> None:
    """Inside an application's own Alembic revision: bring the queue's tables to version `to`, if they are older.

    `op` is `alembic.op`. The version that they have is read from the database; for `--sql`, where nothing can be read,
    it is `start` (default 0: there are none yet). Raises `ConfigurationError` for a version that does not exist.

    >>> def upgrade():
    ...     upgrade_in_revision(op, to=2)
    """
    _move_in_revision(op, to, 0 if start is None else start, down=False)


def downgrade_in_revision(op: AlembicOp, to: int, *, start: int | None = None) -> None:
    """Inside an application's own Alembic revision: bring the queue's tables back to version `to`; 0 drops them.

    For `--sql` give the version that they have as `start`. Raises `ConfigurationError` when it is needed and missing,
    and for a version that does not exist.

    >>> def downgrade():
    ...     downgrade_in_revision(op, to=0)
    """
    _move_in_revision(op, to, start, down=True)


def _move_in_revision(op: AlembicOp, to: int, start: int | None, *, down: bool) -> None:
    context = op.get_context()
    _check_version(to, "to")
    if not context.as_sql:
        connection = context.connection
        assert connection is not None
        if connection.dialect.name == "postgresql":
            _lock(connection)
        with _lock_timeout(connection):
            _move(context, to, down=down)
        return
    if start is None:
        raise ConfigurationError("with --sql the version cannot be read: say downgrade_in_revision(..., start=...)")
    _check_version(start, "start")
    _move(context, to, down=down, start=start)


@contextmanager
def _lock_timeout(connection: Connection) -> Iterator[None]:
    """Bound the waiting for locks by ours, unless the application has a bound of its own; its later revisions get
    their transaction back as it was."""
    if connection.dialect.name != "postgresql" or connection.scalar(text("SHOW lock_timeout")) != "0":
        yield
        return
    _set_lock_timeout(connection, LOCK_TIMEOUT)
    yield  # after an error there is nothing to give back: the transaction is lost, and its settings with it
    _set_lock_timeout(connection, "0")


def _move(context: MigrationContext, to: int, *, down: bool, start: int | None = None) -> None:
    """Run the revisions between the version that the database has (with `--sql`: `start`) and `to`."""
    op = Operations(context)
    current = (start or 0) if context.as_sql else _current(context)
    if down and current > VERSION:
        raise ConfigurationError(f"the database is at version {current}, which this queue_kit cannot take back")
    for version in range(current, to, -1) if down else range(current + 1, to + 1):
        module = _revision(version)
        module.op = op  # of its own, instead of Alembic's for the process
        if down:
            module.downgrade()
            _stamp(op, version, version - 1)
        else:
            module.upgrade()
            _stamp(op, version - 1, version)


def _current(context: MigrationContext) -> int:
    connection = context.connection
    assert connection is not None
    if not inspect(connection).has_table(_version_table.name):
        return 0
    version = int(connection.execute(select(_version_table.c.version_num)).scalar_one_or_none() or 0)
    if version and not inspect(connection).has_table("queue_kit_schema"):
        raise ConfigurationError(
            f"{_version_table.name} says that the tables are there, at version {version}, but they are not: drop it as "
            "well, then migrate again"
        )
    return version


def _revision(version: int) -> Any:
    """A revision's module, loaded anew."""
    return ScriptDirectory(script_location()).get_revision(f"{version:04d}").module


def _stamp(op: Operations, current: int, to: int) -> None:
    """Keep the version table as Alembic does, so that each way of migrating goes on from the others."""
    was, now = (op.inline_literal(f"{version:04d}") for version in (current, to))
    if to == 0:
        op.drop_table(_version_table.name)
    elif current == 0:
        op.create_table(
            _version_table.name,
            Column("version_num", String(32), nullable=False),
            PrimaryKeyConstraint("version_num", name="queue_kit_alembic_version_pkc"),
            if_not_exists=True,
        )
        op.execute(insert(_version_table).values(version_num=now))
    else:
        op.execute(update(_version_table).where(_version_table.c.version_num == was).values(version_num=now))


def _check_version(version: int, argument: str) -> None:
    if version not in range(VERSION + 1):
        raise ConfigurationError(f"{argument}={version!r} is no schema version; known are 0 (no tables) to {VERSION}")
