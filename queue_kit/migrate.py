"""The schema: which version a database has, and the ways to bring it to another.

The queue's revisions lie in `alembic/versions`, as `alembic upgrade head` runs them in a checkout; those of an extra
with tables lie in a folder of their own, and run only when it is named. `upgrade_in_revision` runs either inside an
application's history instead. `queue_kit_schema` tells a worker what it meets.

Alembic is loaded by who migrates: for all the others it would be a sixth of their start.
"""

from collections.abc import Collection, Iterable
from importlib import import_module
from typing import Any, Protocol

from sqlalchemy import Connection, Inspector, MetaData, Table, event, inspect
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from queue_kit import _schema
from queue_kit._database import read_committed
from queue_kit._indexes import build_beside_writers
from queue_kit._part import Part, version_table
from queue_kit._statements import database
from queue_kit.errors import ConfigurationError, SchemaMismatch
from queue_kit.models import Base

VERSION = _schema.VERSION
"""The schema that this library was built for. Version N is Alembic's revision `f"{N:04d}"`."""

LOCK_TIMEOUT = _schema.LOCK_TIMEOUT
"""How long a migration waits for a table's lock on PostgreSQL: all that queues behind it waits as long."""

metadata: MetaData = Base.metadata
"""The queue's tables and its version table. In your `target_metadata` it makes autogenerate leave them alone."""

_queue_version = version_table("queue_kit_alembic_version", metadata)


def _extra(name: str, first_table: str) -> Part:
    return Part(
        name,
        _schema.EXTRAS[name],
        version_table(f"queue_kit_{name}_alembic_version", MetaData()),
        first_table,
    )


_EXTRAS = {
    "files": _extra("files", "queue_kit_file"),
    "sessions": _extra("sessions", "queue_kit_session"),
}

EXTRAS: Collection[str] = tuple(_EXTRAS)
"""The extras that have tables. Each has a version of its own."""


class AlembicOp(Protocol):
    """What a revision knows as `alembic.op`."""

    def get_context(self) -> Any: ...  # noqa: D102 - Alembic's


def metadata_for(extra: str) -> MetaData:
    """The tables of an extra and its version table, for your `target_metadata` beside `metadata`.

    Raises `ConfigurationError` for an unknown extra.

    >>> def target_metadata():  # in your env.py
    ...     return [metadata, metadata_for("files")]
    """
    part = _part(extra)
    found: MetaData = import_module(f"queue_kit.contrib.{part.folder}.models").Base.metadata
    if part.version_table.name not in found.tables:
        part.version_table.to_metadata(found)
    return found


def _part(extra: str | None) -> Part:
    if extra is None:
        return Part("versions", VERSION, _queue_version, "queue_kit_schema")
    if extra not in _EXTRAS:
        raise ConfigurationError(f"unknown extra {extra!r}; those with tables are {', '.join(EXTRAS)}")
    return _EXTRAS[extra]


@event.listens_for(Table, "column_reflect")
def _see_identity(inspector: Inspector, table: Table, column: ReflectedColumn) -> None:
    # SQLite's AUTOINCREMENT stands for the identity, which autogenerate would otherwise miss at every run.
    if table.name == "queue_kit_job" and column["name"] == "id" and inspector.dialect.name == "sqlite":
        identity: Any = {"always": False}
        column.setdefault("identity", identity)


def configuration() -> dict[str, Any]:
    """What `env.py` configures Alembic with: our tables and our version table, and no others of the database."""
    return {
        "target_metadata": metadata,
        "version_table": _queue_version.name,
        "compare_type": True,
        "compare_server_default": True,
        "include_name": _is_ours,
    }


def _is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "table" or name in metadata.tables


async def check_schema(connection: AsyncConnection, extra: str | None = None) -> None:
    """Raise `SchemaMismatch`, with the command that mends it, unless this library can work on the database's tables.

    A newer schema of the queue is fine as long as it says so, so that old and new processes overlap in a rolling
    deploy; a newer one of an `extra` is taken for fine.

    >>> async def check(engine):
    ...     async with engine.connect() as connection:
    ...         await check_schema(connection)
    """
    if not isinstance(connection, AsyncConnection):
        raise TypeError(f"connection must be an AsyncConnection, not {type(connection).__name__}")
    if extra is not None:
        await _check_extra(connection, _part(extra))
        return
    found = await connection.run_sync(_found)
    if found is None:
        raise SchemaMismatch(f"the queue's tables are missing: {_schema.mend()}", found=None, needed=VERSION)
    version, compatible_from = found
    if compatible_from > VERSION:
        problem = f"needs a queue_kit for version {compatible_from} or later, not for {VERSION}: upgrade queue-kit"
        raise SchemaMismatch(f"the queue's schema {version} {problem}", found=version, needed=VERSION)
    if version < VERSION:
        problem = f"the queue's schema is at version {version}, this queue_kit needs {VERSION}: {_schema.mend()}"
        raise SchemaMismatch(problem, found=version, needed=VERSION)


async def _check_extra(connection: AsyncConnection, part: Part) -> None:
    version = await connection.run_sync(part.current)
    if version < part.version:
        name = part.folder
        problem = f"are at version {version}, this queue_kit needs {part.version}" if version else "are missing"
        raise SchemaMismatch(
            f"the tables of {name} {problem}: {_schema.mend(name)}", found=version or None, needed=part.version
        )


async def schema_version(engine: AsyncEngine, extra: str | None = None) -> int | None:
    """The version of the queue's tables, or of an extra's; `None` when there are none.

    >>> async def show(engine):
    ...     print(await schema_version(engine), await schema_version(engine, "files"))
    """
    _check_engine(engine)
    async with engine.connect() as connection:
        if extra is not None:
            return await connection.run_sync(_part(extra).current) or None
        found = await connection.run_sync(_found)
    return None if found is None else found[0]


def _check_engine(engine: object) -> None:
    if not isinstance(engine, AsyncEngine):
        raise TypeError(f"engine must be an AsyncEngine, not {type(engine).__name__}")


def _found(connection: Connection) -> tuple[int, int] | None:
    # Asked for by name: a query that fails would leave the caller's transaction aborted.
    if not inspect(connection).has_table("queue_kit_schema"):
        return None
    row = connection.execute(database.schema_version()).first()
    return None if row is None else (row.version, row.compatible_from)


async def upgrade(engine: AsyncEngine, extras: Iterable[str] = ()) -> None:
    """Bring the database to this library's schema; harmless when it is there or newer, and when two do it at once.

    `extras` names the extras whose tables come along: "files", "sessions". Each version is one transaction. Raises
    `ConfigurationError` for an unknown extra, and what the driver raises, for instance when a table was locked for
    longer than `LOCK_TIMEOUT`.

    >>> async def deploy(engine):
    ...     await upgrade(engine, extras=["files"])
    """
    _check_engine(engine)
    names = [extras] if isinstance(extras, str) else sorted(set(extras))
    for part in [_part(None), *map(_part, names)]:
        async with engine.connect() as connection:
            found = await connection.run_sync(part.current)
        for version in range(min(found + 1, part.version), part.version + 1):
            await _migrate(engine, part, version, down=False)


async def downgrade(engine: AsyncEngine, to: int = 0, *, extra: str | None = None) -> None:
    """Bring the queue's tables, or an extra's, back to an older version; 0 drops them all, finished jobs included.

    Raises `ConfigurationError` for a version or an extra that does not exist, when the database is newer than this
    library, and when jobs that are not finished would be lost.

    >>> async def remove(engine):
    ...     await downgrade(engine)
    """
    _check_engine(engine)
    part = _part(extra)
    part.check(to, "to")
    await _migrate(engine, part, to, down=True)


async def _migrate(engine: AsyncEngine, part: Part, to: int, *, down: bool) -> None:
    from queue_kit import _revisions

    async with read_committed(engine) as connection:
        if connection.dialect.name == "postgresql" and to > 1 and not down:
            await build_beside_writers(connection, _revisions.indexes(part, to))
        if not connection.in_transaction():
            await connection.begin()
        await connection.run_sync(_revisions.run, part, to, down=down)
        await connection.commit()


def upgrade_in_revision(op: AlembicOp, to: int, *, start: int | None = None, extra: str | None = None) -> None:
    """Inside an application's own Alembic revision: bring the queue's tables (or an extra's) to version `to`, if they
    are older.

    `op` is `alembic.op`. The version that they have is read from the database; for `--sql`, where nothing can be read,
    it is `start` (default 0: there are none yet). Raises `ConfigurationError` for a version or an extra that does not
    exist.

    >>> def upgrade():
    ...     upgrade_in_revision(op, to=2)
    ...     upgrade_in_revision(op, to=1, extra="files")
    """
    _move_in_revision(op, _part(extra), to, 0 if start is None else start, down=False)


def downgrade_in_revision(op: AlembicOp, to: int, *, start: int | None = None, extra: str | None = None) -> None:
    """Inside an application's own Alembic revision: bring the queue's tables (or an extra's) back to version `to`; 0
    drops them.

    For `--sql` give the version that they have as `start`. Raises `ConfigurationError` when it is needed and missing,
    and for a version or an extra that does not exist.

    >>> def downgrade():
    ...     downgrade_in_revision(op, to=0, extra="files")
    ...     downgrade_in_revision(op, to=0)
    """
    _move_in_revision(op, _part(extra), to, start, down=True)


def _move_in_revision(op: AlembicOp, part: Part, to: int, start: int | None, *, down: bool) -> None:
    from queue_kit import _revisions

    context = op.get_context()
    part.check(to, "to")
    if not context.as_sql:
        connection = context.connection
        assert connection is not None
        if connection.dialect.name == "postgresql":
            _revisions.lock(connection)
        with _revisions.bounded_waiting(connection):
            _revisions.move(context, part, to, down=down)
        return
    if start is None:
        raise ConfigurationError("with --sql the version cannot be read: say downgrade_in_revision(..., start=...)")
    part.check(start, "start")
    _revisions.move(context, part, to, down=down, start=start)
