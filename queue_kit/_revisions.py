"""Running Alembic's revisions one by one, beside `migrate.py`, which says which and when.

They run without Alembic's process-wide proxies, so that two databases can be migrated at once in one process. Each part
of the schema (the queue; what an extra adds) has revisions and a version table of its own, kept as Alembic keeps one,
so that each way of migrating goes on from the others.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    select,
    text,
    update,
)

from queue_kit.errors import ConfigurationError

LOCK_TIMEOUT = "3s"
"""How long a migration waits for a table's lock on PostgreSQL: all that queues behind it waits as long."""

_MIGRATION_LOCK = 0x71_6B_6D_69_67_72  # an arbitrary number, the same in every process: "qkmigr"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the schema: where its revisions lie, up to which version, and how a database shows which it has."""

    folder: str
    version: int
    version_table: Table
    first_table: str
    """Stands as long as the part does."""

    def check(self, version: int, argument: str) -> None:
        """Raise `ConfigurationError` unless the part knows this version."""
        if version not in range(self.version + 1):
            known = f"known are 0 (no tables) to {self.version}"
            raise ConfigurationError(f"{argument}={version!r} is no schema version; {known}")

    def current(self, connection: Connection) -> int:
        """The version that a database has; 0 when the part is not there."""
        if not inspect(connection).has_table(self.version_table.name):
            return 0
        found = connection.execute(select(self.version_table.c.version_num)).scalar_one_or_none()
        version = int(found or 0)
        if version and not inspect(connection).has_table(self.first_table):
            raise ConfigurationError(
                f"{self.version_table.name} says that the tables are there, at version {version}, but they are not: "
                "drop it as well, then migrate again"
            )
        return version

    def revision(self, version: int) -> Any:
        """A revision's module, loaded anew."""
        scripts = ScriptDirectory(script_location(), version_locations=[str(script_location() / self.folder)])
        return scripts.get_revision(f"{version:04d}").module

    def indexes(self, version: int) -> Mapping[str, str]:
        """What a revision says can be built before it, while the tables are in use: names to `table (columns) ...`."""
        found: Mapping[str, str] = getattr(self.revision(version), "INDEXES", {})
        return found


def version_table(name: str, metadata: MetaData) -> Table:
    """A table like the one in which Alembic keeps the version."""
    return Table(name, metadata, *_version_columns(name))


def _version_columns(name: str) -> tuple[Column[str], PrimaryKeyConstraint]:
    return Column("version_num", String(32), nullable=False), PrimaryKeyConstraint("version_num", name=f"{name}_pkc")


def script_location() -> Path:
    """The folder of the revisions: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "alembic", package.parent / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError("queue_kit's migrations were not found beside or inside the package; install it again")


def take_turn(connection: Connection) -> None:
    """Wait until nobody else migrates this database, and keep others out until the transaction ends."""
    if connection.dialect.name == "postgresql":
        lock(connection)
        _set_lock_timeout(connection, LOCK_TIMEOUT)
    else:
        # The engine may have begun, or not, as its listeners and its driver please.
        driver: Any = connection.connection.driver_connection
        if driver.in_transaction:
            connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _set_lock_timeout(connection: Connection, longest: str) -> None:
    connection.execute(text(f"SET LOCAL lock_timeout = '{longest}'"))


def lock(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})


@contextmanager
def bounded_waiting(connection: Connection) -> Iterator[None]:
    """Bound the waiting for locks by ours, unless the application has a bound of its own; its later revisions get
    their transaction back as it was."""
    if connection.dialect.name != "postgresql" or connection.scalar(text("SHOW lock_timeout")) != "0":
        yield
        return
    _set_lock_timeout(connection, LOCK_TIMEOUT)
    yield  # after an error there is nothing to give back: the transaction is lost, and its settings with it
    _set_lock_timeout(connection, "0")


def move(context: MigrationContext, part: Part, to: int, *, down: bool, start: int | None = None) -> None:
    """Run the revisions between the version that the database has (with `--sql`: `start`) and `to`."""
    op = Operations(context)
    connection = None if context.as_sql else context.connection
    current = (start or 0) if connection is None else part.current(connection)
    if down and current > part.version:
        raise ConfigurationError(f"the database is at version {current}, which this queue_kit cannot take back")
    for version in range(current, to, -1) if down else range(current + 1, to + 1):
        module = part.revision(version)
        module.op = op  # of its own, instead of Alembic's for the process
        if down:
            module.downgrade()
            _stamp(op, part.version_table, version, version - 1)
        else:
            module.upgrade()
            _stamp(op, part.version_table, version - 1, version)


def _stamp(op: Operations, table: Table, current: int, to: int) -> None:
    was, now = (op.inline_literal(f"{version:04d}") for version in (current, to))
    if to == 0:
        op.drop_table(table.name)
    elif current == 0:
        op.create_table(table.name, *_version_columns(table.name), if_not_exists=True)
        op.execute(insert(table).values(version_num=now))
    else:
        op.execute(update(table).where(table.c.version_num == was).values(version_num=now))
