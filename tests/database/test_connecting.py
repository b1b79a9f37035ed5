"""Who is cancelled while connecting: in the very moment in which asyncpg forgets what it waits for, and while a server
says nothing.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asyncpg import connect_utils
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit._clone import clone_of
from queue_kit._connecting import A_MOMENT
from queue_kit._wakeup import Listener
from tests.database.running import alone
from tests.proxy import Proxy, url_through
from tests.support import turns, until


@pytest.fixture
async def proxied(pg_engine: AsyncEngine) -> AsyncIterator[tuple[Proxy, AsyncEngine]]:
    """A way to the database over TCP and, if it may be, TLS: there alone is that moment."""
    async with Proxy(pg_engine.url) as proxy:
        engine = create_async_engine(url_through(proxy, pg_engine.url))
        yield proxy, engine
        proxy.cut()
        await engine.dispose()


@pytest.fixture
async def reported() -> list[dict[str, Any]]:
    """What the event loop reports."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: contexts.append(context))
    return contexts


async def listen(engine: AsyncEngine) -> None:
    def nothing(*_: object) -> None: ...

    await Listener(engine, on_job=nothing, on_cancel=nothing, on_change=nothing).serve()


async def ask(engine: AsyncEngine) -> None:
    private = clone_of(engine)
    try:
        async with private.connect() as connection:
            await connection.execute(select(1))
    finally:
        await private.dispose()


WAYS = pytest.mark.parametrize("connects", [listen, ask])


@WAYS
async def test_who_is_cancelled_while_the_socket_connects_leaves_nothing_that_nobody_has_seen(
    pg_engine, proxied, reported, monkeypatch, connects
):
    cancelled: list[bool] = []
    connecting: list[asyncio.Task[None]] = []

    def connected(_protocol: object, _transport: object) -> None:
        cancelled.append(connecting[0].cancel())

    monkeypatch.setattr(connect_utils.TLSUpgradeProto, "connection_made", connected)
    _, engine = proxied
    connecting.append(asyncio.create_task(connects(engine)))
    await asyncio.wait(connecting)
    assert cancelled
    assert connecting.pop().cancelled()
    gc.collect()
    await asyncio.sleep(0)
    assert reported == []
    await engine.dispose()
    await alone(pg_engine)


@WAYS
async def test_who_is_cancelled_does_not_wait_for_a_server_that_says_nothing(proxied, reported, connects):
    proxy, engine = proxied
    proxy.mute = True
    connecting = asyncio.create_task(connects(engine))
    await until(lambda: proxy.attempts)
    connecting.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert time.monotonic() - began < A_MOMENT + 3.0
    await turns()  # it is told to end only now
    gc.collect()
    assert reported == []
