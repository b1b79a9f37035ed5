"""Running Alembic's revisions one by one, beside `migrate.py`, which says which and when.

They run without Alembic's process-wide proxies, so that two databases can be migrated at once in one process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Table, insert, text, update

from queue_kit._part import Part, version_columns
from queue_kit._schema import LOCK_TIMEOUT
from queue_kit.errors import ConfigurationError

_MIGRATION_LOCK = 0x71_6B_6D_69_67_72  # an arbitrary number, the same in every process: "qkmigr"


def script_location() -> Path:
    """The folder of the revisions: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "alembic", package.parent / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError("queue_kit's migrations were not found beside or inside the package; install it again")


def revision(part: Part, version: int) -> Any:
    """A revision's module, loaded anew."""
    scripts = ScriptDirectory(script_location(), version_locations=[str(script_location() / part.folder)])
    return scripts.get_revision(f"{version:04d}").module


def indexes(part: Part, version: int) -> Mapping[str, str]:
    """What a revision says can be built before it, while the tables are in use: names to `table (columns) ...`."""
    found: Mapping[str, str] = getattr(revision(part, version), "INDEXES", {})
    return found


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


def run(connection: Connection, part: Part, to: int, *, down: bool) -> None:
    """Run them up to `to` in a transaction of their own, when its turn has come."""
    take_turn(connection)
    move(MigrationContext.configure(connection), part, to, down=down)


def move(context: MigrationContext, part: Part, to: int, *, down: bool, start: int | None = None) -> None:
    """Run the revisions between the version that the database has (with `--sql`: `start`) and `to`."""
    op = Operations(context)
    connection = None if context.as_sql else context.connection
    current = (start or 0) if connection is None else part.current(connection)
    if down and current > part.version:
        raise ConfigurationError(f"the database is at version {current}, which this queue_kit cannot take back")
    for version in range(current, to, -1) if down else range(current + 1, to + 1):
        module = revision(part, version)
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
        op.create_table(table.name, *version_columns(table.name), if_not_exists=True)
        op.execute(insert(table).values(version_num=now))
    else:
        op.execute(update(table).where(table.c.version_num == was).values(version_num=now))
