"""A part of the schema: the queue, or what an extra adds. Each has revisions and a version table of its own, kept as
Alembic keeps one, so that each way of migrating goes on from the others. What runs them is `_revisions`.
"""

from dataclasses import dataclass

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, inspect, select

from queue_kit.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Part:
    """Where its revisions lie, up to which version, and how a database shows which it has."""

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


def version_table(name: str, metadata: MetaData) -> Table:
    """A table like the one in which Alembic keeps the version."""
    return Table(name, metadata, *version_columns(name))


def version_columns(name: str) -> tuple[Column[str], PrimaryKeyConstraint]:
    """Its columns."""
    return Column("version_num", String(32), nullable=False), PrimaryKeyConstraint("version_num", name=f"{name}_pkc")
