"""Processes of one test: started, heard, and ended with it."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.support import until

SCRIPT = Path(__file__).with_name("sharing.py")


class Member:
    """A worker's process; what it says is in `lines`, its log in `log`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []
        self.log: list[str] = []
        self._reading = [
            asyncio.create_task(self._read(process.stdout, self.lines)),
            asyncio.create_task(self._read(process.stderr, self.log)),
        ]

    async def _read(self, stream: asyncio.StreamReader | None, into: list[str]) -> None:
        assert stream is not None
        while line := await stream.readline():
            into.append(line.decode().strip())

    def count(self, word: str) -> int:
        """How many lines begin with this word."""
        return sum(line.split()[0] == word for line in self.lines)

    async def says(self, line: str, *, seconds: float = 20.0) -> None:
        """Wait until it has said this."""
        await until(lambda: line in self.lines or self._process.returncode is not None, seconds=seconds)
        assert line in self.lines, (self._process.returncode, self.lines, self.log)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one to a process that is gone is lost."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self) -> int:
        """Ask it to stop gracefully; its exit status."""
        self.send(signal.SIGTERM)
        async with asyncio.timeout(15):
            return await self._over()

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self._over()

    async def _over(self) -> int:
        status = await self._process.wait()
        await asyncio.gather(*self._reading)
        return status


class Crowd:
    """Starts workers."""

    def __init__(self) -> None:
        self.all: list[Member] = []

    async def start(self, url: str, *, within: Sequence[str] = (), **options: object) -> Member:
        """A started worker's process, `within` a command that runs another one."""
        command = [*within, sys.executable, str(SCRIPT), url, *(f"{name}={value}" for name, value in options.items())]
        pipe = asyncio.subprocess.PIPE
        self.all.append(Member(await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)))
        return self.all[-1]


@contextlib.asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    """Processes that are gone afterwards, however the test ends."""
    made = Crowd()
    try:
        yield made
    finally:
        await asyncio.gather(*(member.kill() for member in made.all))
