"""Processes of one test: started, heard, frozen, and gone at its end."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support import PATIENCE, until

CHECKOUT = Path(__file__).parents[1]

SHARING = CHECKOUT / "tests" / "system" / "sharing.py"
"""A worker for tests of many workers."""


class Member:
    """A process; what it says is in `lines`, its log in `log`."""

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

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended; below zero it is the signal."""
        return self._process.returncode

    def count(self, word: str) -> int:
        """How many lines begin with this word."""
        return sum(line.split()[0] == word for line in self.lines)

    async def says(self, line: str) -> None:
        """Wait until it has said this."""
        await until(lambda: line in self.lines or self.status is not None, seconds=30)
        assert line in self.lines, (self.status, self.lines, self.log)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one to a process that is gone is lost."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def freeze(self) -> None:
        """Stop it in the middle of whatever it does, and wait until it stands still."""
        self.send(signal.SIGSTOP)
        await until(lambda: Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    async def over(self, *, seconds: float = PATIENCE) -> int:
        """Wait until it is gone; its exit status."""
        async with asyncio.timeout(seconds):
            status = await self._process.wait()
            await asyncio.gather(*self._reading)
            return status

    async def stop(self) -> int:
        """Ask it to stop gracefully; its exit status."""
        self.send(signal.SIGTERM)
        return await self.over()

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        await self.over()


@contextlib.asynccontextmanager
async def running(*command: object, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """One process, whose output `communicate` gives; it is gone afterwards, however the test ends."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, command), **{"stdout": pipe, "stderr": pipe} | options)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Crowd:
    """Starts processes of one kind."""

    def __init__(self, *words: object) -> None:
        self._words = words
        self.all: list[Member] = []

    async def start(
        self, *, within: Sequence[str] = (), environment: Mapping[str, str] | None = None, **options: object
    ) -> Member:
        """A process, with these variables beside its own; `within` is a command that runs another one."""
        words = [*self._words, *(f"{name}={value}" for name, value in options.items())]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(*within, sys.executable, *map(str, words)),
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **(environment or {})},
            cwd=CHECKOUT,
        )
        self.all.append(Member(process))
        return self.all[-1]


@contextlib.asynccontextmanager
async def crowd(*words: object) -> AsyncIterator[Crowd]:
    """Processes of `python WORDS... [option=value ...]` that are gone afterwards, however the test ends."""
    made = Crowd(*words)
    try:
        yield made
    finally:
        await asyncio.gather(*(member.kill() for member in made.all))
