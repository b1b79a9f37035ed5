"""A database whose clock a test moves. It stands still in between, so every time in it is known to the millisecond.

The statements, defaults and triggers stay as they are; what they call for the time is a function of ours. SQLite takes
one for its own of the same name. PostgreSQL finds those of a schema that its search path names before its catalog, and
binds them when the tables are migrated.
"""

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import migrate, sqlite_engine
from tests.conftest import Server

START = datetime(2030, 1, 1, 12, 0, 10, 250_000, tzinfo=UTC)
_JULIAN_EPOCH = datetime(2000, 1, 1, 12, tzinfo=UTC), 2_451_545

_POSTGRESQL = (
    "CREATE TABLE movable_clock (shows timestamptz NOT NULL)",
    f"INSERT INTO movable_clock VALUES ('{START.isoformat()}')",
    *(
        f"CREATE FUNCTION {name}() RETURNS timestamptz LANGUAGE sql {kind} AS 'SELECT shows FROM movable_clock'"
        for name, kind in (("clock_timestamp", "VOLATILE"), ("statement_timestamp", "STABLE"))
    ),
)


class MovableClock:
    """What a database takes for the time."""

    def __init__(self) -> None:
        self.now = START

    async def move(self, to: datetime) -> None:
        """Let it be this time."""
        self.now = to


class _OfSqlite(MovableClock):
    def install(self, connection: Any, _record: object) -> None:
        connection.create_function("strftime", -1, self._strftime)
        connection.create_function("julianday", 1, self._julianday)

    def _strftime(self, pattern: str, instant: str, *shifts: str) -> str:
        assert (pattern, instant) == ("%Y-%m-%d %H:%M:%f", "now")
        seconds = sum(float(shift.removesuffix(" seconds")) for shift in shifts)
        shown = self.now + timedelta(milliseconds=round(1000 * seconds))
        return shown.replace(tzinfo=None).isoformat(sep=" ", timespec="milliseconds")

    def _julianday(self, instant: str | None) -> float | None:
        if instant is None:
            return None
        at = self.now if instant == "now" else datetime.fromisoformat(instant).replace(tzinfo=UTC)
        epoch, day = _JULIAN_EPOCH
        return day + (at - epoch) / timedelta(days=1)


class _OfPostgresql(MovableClock):
    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__()
        self._engine = engine

    async def install(self) -> None:
        async with self._engine.begin() as connection:
            for statement in _POSTGRESQL:
                await connection.execute(text(statement))
            path = "public, pg_catalog"
            await connection.execute(text(f"ALTER DATABASE {self._engine.url.database} SET search_path = {path}"))
        await self._engine.dispose()  # what connects from here on has that path

    async def move(self, to: datetime) -> None:
        await super().move(to)
        async with self._engine.begin() as connection:
            await connection.execute(text("UPDATE movable_clock SET shows = :to"), {"to": to})


@contextlib.asynccontextmanager
async def database_with_clock(database: Server | Path) -> AsyncIterator[tuple[AsyncEngine, MovableClock]]:
    """A migrated database of its own (a new one on the server, or this file) and its clock."""
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(database, Path):
            engine, clock = sqlite_engine(database), _OfSqlite()
            event.listen(engine.sync_engine, "connect", clock.install)
        else:
            engine = create_async_engine(await stack.enter_async_context(database.fresh("template0")))
            clock = _OfPostgresql(engine)
            await clock.install()
            await migrate.upgrade(engine)
        stack.push_async_callback(engine.dispose)
        yield engine, clock
