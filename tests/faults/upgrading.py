"""What the tests of upgrades share: a folder of revisions that has one more than ours, and a process of the next
version that migrates, can be stopped half-way, and tells how it ended.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import _revisions, migrate
from tests.crowd import running
from tests.database.running import raw
from tests.support import until

HERE = Path(__file__).parent


class Ended(NamedTuple):
    status: int
    output: str
    errors: str


class Next:
    """The next version of the library, on one database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = shutil.copytree(
            _revisions.script_location(), folder / "revisions", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(HERE / "revision_0003.py", self.folder / "versions" / "0003_next.py")
        self._url = url

    async def run(self, command: str = "migrate", *, lock_timeout: str = migrate.LOCK_TIMEOUT) -> Ended:
        """Run one of its commands to the end."""
        async with self.start(command, lock_timeout=lock_timeout) as process:
            return await process.ended()

    @contextlib.asynccontextmanager
    async def start(
        self, command: str = "migrate", *, lock_timeout: str = migrate.LOCK_TIMEOUT, pause: bool = False
    ) -> AsyncIterator["Running"]:
        """One of its commands as a process, which does not outlive the block."""
        environment = {**os.environ, "QUEUE_KIT_DATABASE_URL": self._url, "PAUSE": "yes" if pause else ""}
        command_line = (sys.executable, HERE / "migrating.py", self.folder, lock_timeout, command)
        async with running(*command_line, stdin=asyncio.subprocess.PIPE, env=environment) as process:
            yield Running(process)


class Running:
    """A process of the next version."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def half_way(self) -> None:
        """Wait until the migration has done the first half of its work."""
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            assert await self._process.stdout.readline() == b"half-way\n"

    def go_on(self) -> None:
        """Let it do the other half."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def kill(self) -> None:
        self._process.kill()

    async def ended(self) -> Ended:
        """Wait for its end; what it said."""
        async with asyncio.timeout(30):
            output, errors = await self._process.communicate()
        assert self._process.returncode is not None
        return Ended(self._process.returncode, output.decode(), errors.decode())


async def is_waited_for(engine: AsyncEngine, following: Next) -> None:
    """Kill a migration while an index is built: another waits for what the server builds on, and builds nothing."""
    async with engine.connect() as user:
        await user.execute(text("INSERT INTO queue_kit_job (name) VALUES ('a')"))
        async with following.start() as first:
            (builder,) = await until(lambda: builders(engine))
            first.kill()
            assert (await first.ended()).status == -signal.SIGKILL
        async with following.start() as second:
            await until(lambda: looks_for_builders(engine))
            assert await builders(engine) == [builder]
            await user.rollback()
            assert await second.ended() == (0, "the schema went from version 2 to 3\n", "")
    assert await built(engine) == [True]


async def looks_for_builders(engine: AsyncEngine) -> bool:
    """Whether a migrating process has looked whether an index is built by somebody else."""
    about = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return bool(await raw(engine, f"{about} AND query LIKE '%pg_stat_progress_create_index%'"))


async def built(engine: AsyncEngine) -> list[bool]:
    """Whether the next version's index is valid; nothing when it is not there at all."""
    about = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('queue_kit_job_by_name')"
    return [row[0] for row in await raw(engine, about)]


async def builders(engine: AsyncEngine) -> list[int]:
    """The connections that build an index beside the writers, and wait for one of them."""
    about = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND query ILIKE 'CREATE INDEX CONCURRENTLY%' AND state = 'active' AND wait_event_type = 'Lock'"
    )
    return [row[0] for row in await raw(engine, about)]
