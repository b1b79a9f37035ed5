"""Running jobs in tests: a stand-in for a worker that died, handlers that wait or refuse to end, and a proxy that cuts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import JobRow
from tests.database.clock import database_now
from tests.support import change


async def lapse(engine: AsyncEngine, job_id: int, *, times: int = 1) -> None:
    """Let a job's lease have lapsed this often, by the next claim's count."""
    past = await database_now(engine) - timedelta(seconds=60)
    held = {"worker_id": uuid4(), "claim_no": JobRow.claim_no + 1, "lease_until": past, "lost": times - 1}
    await change(engine, job_id, status=1, scheduled_at=past, **held)


async def raw(engine: AsyncEngine, sql: str, **parameters: Any) -> list[Any]:
    """Plain SQL, as another program would send it; the rows of a SELECT."""
    async with engine.begin() as connection:
        result = await connection.execute(text(sql), parameters)
        return list(result.all()) if result.returns_rows else []


class Refusing:
    """A handler that goes on however often it is cancelled, until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, event: Any, session: Any, job: Any) -> None:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1


class Gate:
    """A handler that waits until it is opened, and tells which jobs run, how many at once, and in which order."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.running: set[int] = set()
        self.ran: list[int] = []

    async def __call__(self, event: Any, session: Any, job: Any) -> None:
        self.running.add(job.id)
        self.ran.append(job.id)
        try:
            await self.open.wait()
        finally:
            self.running.discard(job.id)


class Proxy:
    """A TCP proxy in front of the database that can cut what is connected and refuse what comes."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.attempts = 0
        self.refusing = False

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pipe in list(self._pipes):
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await pipe

    def cut(self) -> None:
        """Break all connections; new ones are served unless `refusing`."""
        for writer in self._writers:
            writer.transport.abort()
        for pipe in self._pipes:
            pipe.cancel()

    def down(self) -> None:
        """From here on there is no database."""
        self.refusing = True
        self.cut()

    def up(self) -> None:
        """The database is back."""
        self.refusing = False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attempts += 1
        if self.refusing:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pipe = asyncio.create_task(self._pipe(source, sink))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.transport.abort()
            self._writers.discard(sink)


@contextlib.asynccontextmanager
async def through_proxy(engine: AsyncEngine, make: Any) -> AsyncIterator[tuple[Proxy, AsyncEngine]]:
    """A proxy before the engine's server, and an engine that goes through it."""
    url = engine.url
    async with Proxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        proxied = make(url.set(host="127.0.0.1", port=proxy.port))
        try:
            yield proxy, proxied
        finally:
            await proxied.dispose()
