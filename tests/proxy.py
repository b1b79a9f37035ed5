"""A TCP proxy before a PostgreSQL server: the network between a worker and its database, with everything that breaks.

It runs in the test's event loop, or in a process of its own: `async with Proxy(url) as proxy`, then connect to
`proxy.port`. What it does to a connection it does to both directions unless it says otherwise.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

CHUNK = 65_536


@dataclass(eq=False)
class _Connection:
    """One client and its way to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    replies_left: int | None = None
    reply_is_lost: bool = False

    def abort(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


Pipe: TypeAlias = Callable[[_Connection, asyncio.StreamReader], Awaitable[None]]


class Proxy:
    """Passes bytes on, and breaks what passes.

    - `latency`: seconds that each piece waits; `rate`: bytes a second for each direction of a connection;
    - `refusing`: new connections are reset; `mute`: they are accepted, and nothing is ever said.
    - `attempts`: how many connections came, since the beginning.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._muted: list[asyncio.StreamWriter] = []
        self._marker: bytes | None = None
        self._delivered = False
        self.tripped = asyncio.Event()
        self.port = 0
        self.attempts = 0
        self.refusing = False
        self.mute = False
        self.latency = 0.0
        self.rate: float | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        pipes = list(self._connections)
        self.cut()
        await asyncio.gather(*pipes, return_exceptions=True)

    @property
    def connected(self) -> int:
        """How many connections pass through at present."""
        return len(set(self._connections.values()))

    def cut(self) -> None:
        """Break all connections; new ones are served unless `refusing`."""
        for pipe, connection in self._connections.items():
            connection.abort()
            pipe.cancel()
        for writer in self._muted:
            writer.transport.abort()
        self._muted.clear()

    def down(self) -> None:
        """From here on there is no database."""
        self.refusing = True
        self.cut()

    def up(self) -> None:
        """The database is back."""
        self.refusing = False

    def stall(self) -> None:
        """Nothing passes any more on the connections there are, though they stay open; new ones are served."""
        for connection in self._connections.values():
            connection.flowing.clear()

    def resume(self) -> None:
        """What stalled goes on, with everything that was said meanwhile."""
        for connection in self._connections.values():
            connection.flowing.set()

    def stall_after(self, reply_bytes: int) -> None:
        """Let this much of what the server says next reach each client, then stall that connection."""
        for connection in self._connections.values():
            connection.replies_left = reply_bytes

    def down_at(self, marker: bytes, *, delivered: bool) -> None:
        """Go down when a client next sends this: either it never arrives, or only the server's reply is lost."""
        self._marker, self._delivered = marker, delivered

    def lead_to(self, url: URL) -> None:
        """New connections reach another server; those there are stay where they are."""
        self._url = url

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.attempts += 1
        if self.refusing:
            writer.transport.abort()
            return
        if self.mute:
            self._muted.append(writer)
            return
        try:
            far_reader, far_writer = await _reach(self._url)
        except OSError:  # the server itself is away
            writer.transport.abort()
            return
        connection = _Connection(writer, far_writer)
        if self.refusing:  # it went down meanwhile
            connection.abort()
            return
        connection.flowing.set()
        for pipe, source in ((self._requests, reader), (self._replies, far_reader)):
            task = asyncio.create_task(self._until_it_breaks(pipe, connection, source))
            self._connections[task] = connection
            task.add_done_callback(self._connections.pop)

    async def _until_it_breaks(self, pipe: Pipe, connection: _Connection, source: asyncio.StreamReader) -> None:
        try:
            with contextlib.suppress(OSError):
                await pipe(connection, source)
        finally:
            connection.abort()

    async def _requests(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            if self._marker is not None and self._marker in data:
                self._marker = None
                if not self._delivered:
                    self._trip()
                    return
                connection.reply_is_lost = True
            await self._pass_on(data, connection, connection.server)

    async def _replies(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(CHUNK):
            if connection.reply_is_lost:
                self._trip()
                return
            if connection.replies_left is not None:
                passing, data = data[: connection.replies_left], data[connection.replies_left :]
                connection.replies_left -= len(passing)
                await self._pass_on(passing, connection, connection.client)
                if connection.replies_left == 0:
                    connection.replies_left = None
                    connection.flowing.clear()
            await self._pass_on(data, connection, connection.client)

    def _trip(self) -> None:
        self.tripped.set()
        self.down()

    async def _pass_on(self, data: bytes, connection: _Connection, to: asyncio.StreamWriter) -> None:
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.rate is not None:
            await asyncio.sleep(len(data) / self.rate)
        await connection.flowing.wait()
        to.write(data)
        await to.drain()


async def _reach(url: URL) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = url.port or 5432
    folder = url.query.get("host")
    if isinstance(folder, str):
        return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
    return await asyncio.open_connection(url.host, port)


def url_through(proxy: Proxy, url: URL) -> URL:
    """The URL of the same database, by way of the proxy."""
    return url.set(host="127.0.0.1", port=proxy.port, query={})


@contextlib.asynccontextmanager
async def through_proxy(engine: AsyncEngine, **options: Any) -> AsyncIterator[tuple[Proxy, AsyncEngine]]:
    """A proxy before the engine's server, and an engine that goes through it."""
    async with Proxy(engine.url) as proxy:
        proxied = create_async_engine(url_through(proxy, engine.url), connect_args={"ssl": False}, **options)
        try:
            yield proxy, proxied
        finally:
            proxy.cut()  # or closing what is stalled would wait for ever
            await proxied.dispose()
