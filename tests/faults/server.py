"""A PostgreSQL server of a test's own: to be stopped, crashed, started with other settings, copied and promoted.

It is the one of `tests.postgres`, driven by `pg_ctl`. When the run is killed, the guard there removes the folder, and
a server that was started again notices within a minute that it has none.
"""

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import migrate
from tests.postgres import SETTINGS, find_binaries, postgres, unprivileged
from tests.support import make_effects

DURABLE = {"synchronous_commit": "on"}
"""Without it a crash may lose what was acknowledged. (`fsync` is for the machine's crash, not the server's.)"""


class OwnServer:
    """One server, reached by its socket in `root`."""

    def __init__(self, root: Path, *, folder: str = "data", port: int = 5432) -> None:
        self._binaries = find_binaries(unprivileged())
        self._root = root
        self._port = port
        self.data = root / folder

    @property
    def url(self) -> URL:
        return make_url(f"postgresql+asyncpg://postgres@:{self._port}/postgres?host={self._root}")

    async def stop(self, mode: str = "fast") -> None:
        """Stop it; in mode "immediate" as a crash does, so that it has to recover."""
        await self._run("pg_ctl", "stop", "-D", self.data, "-m", mode)

    async def start(self, **settings: object) -> None:
        """Start it again, with these settings instead of the tests'."""
        chosen = {**SETTINGS, **settings, "port": self._port}
        words = [
            "-k",
            str(self._root),
            "-h",
            "",
            *(w for name, value in chosen.items() for w in ("-c", f"{name}={value}")),
        ]
        log = self._root / f"log {self._port}"
        await self._run("pg_ctl", "start", "-w", "-D", self.data, "-l", log, "-o", shlex.join(words))

    async def restart(self, mode: str = "fast", **settings: object) -> None:
        await self.stop(mode)
        await self.start(**settings)

    async def copy(self, upstream: URL) -> "OwnServer":
        """A standby of this server, which reaches it by `upstream`."""
        standby = OwnServer(self._root, folder="standby", port=self._port + 1)
        source = f"host={upstream.host} port={upstream.port} user=postgres"
        await self._run("pg_basebackup", "-D", standby.data, "-d", source, "-R", "-c", "fast")
        return standby

    async def promote(self) -> None:
        """Make a standby the primary."""
        await self._run("pg_ctl", "promote", "-w", "-D", self.data)

    async def _run(self, program: str, *words: object) -> None:
        process = await asyncio.create_subprocess_exec(
            self._binaries / program,
            *map(str, words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
            **unprivileged(),
        )
        assert await process.wait() == 0, (program, words)

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[AsyncEngine]:
        """A migrated database of its own on this server, and an engine on it."""
        name = f"fault_{uuid4().hex[:12]}"
        admin = create_async_engine(self.url, isolation_level="AUTOCOMMIT")
        async with admin.connect() as connection:
            await connection.exec_driver_sql(f"CREATE DATABASE {name}")
        await admin.dispose()
        async with ready(create_async_engine(self.url.set(database=name), pool_pre_ping=True)) as engine:
            yield engine


@contextlib.asynccontextmanager
async def ready(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database, given all tables, and disposed of at the end."""
    try:
        await migrate.upgrade(engine)
        await make_effects(engine)
        yield engine
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def own_server(folder: Path | None = None) -> AsyncIterator[OwnServer]:
    """A server that is there for one test."""
    with postgres(folder=folder) as url:
        made = OwnServer(Path(str(make_url(url).query["host"])))
        try:
            yield made
        finally:
            for pid_file in sorted(made._root.glob("*/postmaster.pid")):
                await OwnServer(made._root, folder=pid_file.parent.name).stop("immediate")


async def raw_autocommit(engine: AsyncEngine, *statements: str) -> None:
    """Statements that must not be inside a transaction."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await connection.exec_driver_sql(statement)
