"""Running jobs in tests: a stand-in for a worker that died, handlers that wait or refuse to end, a proxy that cuts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Self
from uuid import uuid4

from sqlalchemy import URL, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from queue_kit import JobRow, add_job
from queue_kit.models import WorkerRow
from tests.database.clock import database_now, lease
from tests.support import change


async def lapse(engine: AsyncEngine, job_id: int, *, times: int = 1) -> None:
    """Let a job's lease have lapsed this often, by the next claim's count."""
    past = await database_now(engine) - timedelta(seconds=60)
    held = {"worker_id": uuid4(), "claim_no": JobRow.claim_no + 1, "lease_until": past, "lost": times - 1}
    await change(engine, job_id, status=1, scheduled_at=past, **held)


STATES = ("scheduled", "ready", "lapsed", "running", "completed", "failed", "cancelled")
"""Every state that a job can be in; "lapsed" is ready again, since its worker died."""


async def in_every_state(engine: AsyncEngine) -> dict[str, int]:
    """The id of a job in each of `STATES`."""
    return {state: await job_in(engine, state) for state in STATES}


async def job_in(engine: AsyncEngine, state: str, *, name: str = "a", **columns: Any) -> int:
    """A job in one of `STATES`, with these columns."""
    job_id = await add_job(engine, name, delay=1_000 if state == "scheduled" else None)
    if state in ("running", "lapsed"):
        await lease(engine, job_id, seconds=600 if state == "running" else -600)
    columns = {"completed": {"status": 2}, "failed": {"status": 3}, "cancelled": {"status": 4}}.get(state, {}) | columns
    if columns:
        await change(engine, job_id, **columns)
    return job_id


async def raw(engine: AsyncEngine, sql: str, **parameters: Any) -> list[Any]:
    """Plain SQL, as another program would send it; the rows of a SELECT."""
    async with engine.begin() as connection:
        result = await connection.execute(text(sql), parameters)
        return list(result.all()) if result.returns_rows else []


async def worker_rows(engine: AsyncEngine) -> list[WorkerRow]:
    """What the workers tell of themselves, in the order in which they started."""
    async with AsyncSession(engine) as session:
        return list(await session.scalars(select(WorkerRow).order_by(WorkerRow.started_at)))


async def listening(engine: AsyncEngine) -> bool:
    """Whether a worker listens: to one channel after the other, the cancellations last; then it only probes."""
    last = "query ILIKE 'LISTEN%queue_kit_cancel%' OR query = 'SELECT 1'"
    return bool(await raw(engine, f"SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND ({last})"))


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
    """A TCP proxy in front of the database that can cut or silence what is connected and refuse what comes."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._doomed: set[asyncio.StreamWriter] = set()
        self._marker: bytes | None = None
        self._delivered = False
        self.tripped = asyncio.Event()
        self.port = 0
        self.attempts = 0
        self.refusing = False

    async def __aenter__(self) -> Self:
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

    def stall(self) -> None:
        """Nothing passes any more on the connections there are, though they stay open; new ones are served."""
        self._silent |= self._writers

    def down_at(self, marker: bytes, *, delivered: bool) -> None:
        """Go down when a client next sends this: either it never arrives, or only the server's reply is lost."""
        self._marker, self._delivered = marker, delivered

    def _trips(self, data: bytes, client: asyncio.StreamWriter) -> bool:
        if self._marker is None or self._marker not in data:
            return False
        self._marker = None
        if self._delivered:
            self._doomed.add(client)
        return not self._delivered

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attempts += 1
        if self.refusing:
            writer.transport.abort()
            return
        far_reader, far_writer = await self._reach_the_server()
        if self.refusing:  # it went down meanwhile
            writer.transport.abort()
            far_writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pipe = asyncio.create_task(self._pipe(source, sink, client=writer))
            self._pipes.add(pipe)
            pipe.add_done_callback(self._pipes.discard)

    async def _reach_the_server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self._url.port or 5432
        if folder := self._url.query.get("host"):
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        return await asyncio.open_connection(self._url.host, port)

    async def _pipe(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, client: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await source.read(65_536):
                if sink in self._silent:
                    continue
                if sink in self._doomed or (sink is not client and self._trips(data, client)):
                    self.tripped.set()
                    self.down()
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.transport.abort()
            self._writers.discard(sink)


@contextlib.asynccontextmanager
async def through_proxy(engine: AsyncEngine, **options: Any) -> AsyncIterator[tuple[Proxy, AsyncEngine]]:
    """A proxy before the engine's server, and an engine that goes through it."""
    async with Proxy(engine.url) as proxy:
        url = engine.url.set(host="127.0.0.1", port=proxy.port, query={})
        proxied = create_async_engine(url, connect_args={"ssl": False}, **options)
        try:
            yield proxy, proxied
        finally:
            proxy.cut()  # or closing what is stalled would wait for ever
            await proxied.dispose()
