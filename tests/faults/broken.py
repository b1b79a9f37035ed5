"""The processes of one test of faults (`breaking.py`), and what can be seen of them from outside."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.support import until
from tests.system.crowd import Member

CHECKOUT = Path(__file__).parents[2]


class Process(Member):
    """A worker's process, which may be frozen."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended; below zero it is the signal."""
        return self._process.returncode

    async def over(self) -> int:
        """Wait until it is gone; its exit status."""
        async with asyncio.timeout(20):
            return await self._over()

    async def freeze(self) -> None:
        """Stop it in the middle of whatever it does, and wait until it stands still."""
        self.send(signal.SIGSTOP)
        await until(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def thaw(self) -> None:
        self.send(signal.SIGCONT)


class Processes:
    """Starts workers on one database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.all: list[Process] = []

    async def start(self, *, environment: Mapping[str, str] | None = None, **options: object) -> Process:
        """A worker's process, with these variables beside its own."""
        command = [
            sys.executable,
            "-m",
            "tests.faults.breaking",
            self._url,
            *(f"{name}={value}" for name, value in options.items()),
        ]
        pipe = asyncio.subprocess.PIPE
        variables = {**os.environ, **(environment or {})}
        self.all.append(
            Process(
                await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=variables, cwd=CHECKOUT)
            )
        )
        return self.all[-1]


@contextlib.asynccontextmanager
async def processes(url: str) -> AsyncIterator[Processes]:
    """Processes that are gone afterwards, however the test ends."""
    made = Processes(url)
    try:
        yield made
    finally:
        await asyncio.gather(*(process.kill() for process in made.all))


def open_files(pid: int) -> set[str]:
    """What a process has open: paths, sockets and pipes."""
    links = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(str(entry.readlink()))
    return links
