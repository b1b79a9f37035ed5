"""The processes of a run. A slot is a place in it that one process after the other fills, as a supervisor would see
to it; each has a name of its own, so that what it does can be told from what its predecessor did.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path

from tests.torture.role import Role
from tests.torture.worker import CANCEL_GRACE, GRACE

STOP = GRACE + CANCEL_GRACE + 10.0
"""Seconds that a worker may take to leave: what it promises, and some for a busy machine."""

CHECKOUT = Path(__file__).resolve().parents[2]


class Slot:
    """Keeps one process running. `cast` gives the role of the next, from its name."""

    def __init__(self, name: str, module: str, cast: Callable[[str], Role], *, proxied: bool, log: Path) -> None:
        self.name = name
        self.proxied = proxied
        self.busy = False
        """Whether a fault is at it, so that no other is meanwhile."""
        self.deaths: list[str] = []
        """The processes that ended unasked."""
        self._module = module
        self._cast = cast
        self._log = log
        self._generation = 0
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ending = False

    @property
    def actor(self) -> str:
        return f"{self.name}.{self._generation}"

    async def start(self) -> None:
        self._generation += 1
        self._ending = False
        command = self._cast(self.actor).command(self._module)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, cwd=CHECKOUT
            )
        self._watching = asyncio.create_task(self._watch(self._process))

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        if not self._ending:
            self.deaths.append(f"{self.actor} with status {status}")
            await asyncio.sleep(0.2)
            if not self._ending:
                await self.start()

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def kill(self) -> None:
        """End it without a word."""
        self._ending = True
        self.send(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """Ask it to end. It must, in time and with status 0."""
        assert self._process is not None
        self._ending = True
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP):
                status: int | None = await self._process.wait()
        except TimeoutError:
            status = None
            await self.kill()
        if status != 0:
            self.deaths.append(f"{self.actor} at its stop: " + ("too late" if status is None else f"status {status}"))
