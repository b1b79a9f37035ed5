"""How many handlers' sessions may hold a connection at once. The bound belongs to the engine's pool, so all workers on
one engine share it; on SQLite it is 1, a fair lock around every transaction of the queue."""

import asyncio
import time
from collections.abc import Callable
from typing import Literal
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool, QueuePool, StaticPool

from queue_kit.errors import ConfigurationError

RESERVED = 2
"""Connections of the pool that handlers never take: one for the host, one more so that it need not wait for it."""

LONG_TURN = 0.05
"""Seconds from which on a turn at SQLite's lock counts as long: somebody waits in it for something else."""

MOST_LONG_TURNS = 1.0
"""Seconds of long turns, one right after the other, that others are made to wait."""

BREATH = 0.12
"""Seconds in which everybody who waits for SQLite's lock looks at it once more: it asks again every 0.1 s."""

_gates: WeakKeyDictionary[Pool, tuple[asyncio.AbstractEventLoop, asyncio.Semaphore]] = WeakKeyDictionary()


class WriterGate(asyncio.Semaphore):
    """The fair lock around the queue's transactions on SQLite, which leaves the database to others now and then.

    Requests of the application and other processes do not stand in this line; SQLite lets them ask again and again.
    Handlers that hold the lock while they wait for a service would hand it from one to the next before anybody asks,
    until the busy timeout of the others is over.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self._taken_at = self._left_at = 0.0
        self._long_turns = 0.0

    async def acquire(self) -> Literal[True]:
        """Wait for the turn."""
        await super().acquire()
        self._taken_at = time.monotonic()
        if self._taken_at - self._left_at > BREATH:
            self._long_turns = 0.0
        return True

    def release(self) -> None:
        """End the turn; the next one begins at once, or when others had time for theirs."""
        self._left_at = time.monotonic()
        turn = self._left_at - self._taken_at
        if turn > LONG_TURN:
            self._long_turns += turn
        if self._long_turns > MOST_LONG_TURNS:
            self._long_turns = 0.0
            asyncio.get_running_loop().call_later(BREATH, super().release)
        else:
            super().release()


def gate_for(engine: Engine, parallel_count: int) -> tuple[asyncio.Semaphore, int | None]:
    """The gate of an engine in the running loop and its bound; `None` when the pool itself is unlimited.

    Raises `ConfigurationError` for a pool too small to share.
    """
    if engine.dialect.name == "sqlite":
        return _shared(engine.pool, WriterGate), 1
    if isinstance(engine.pool, StaticPool):
        raise ConfigurationError(
            "the engine has a StaticPool, one connection for all: its transactions would be in each other's; leave out "
            "poolclass="
        )
    bound = _pool_limit(engine.pool)
    if bound is None:
        return asyncio.Semaphore(parallel_count), None
    if bound <= RESERVED:
        raise ConfigurationError(
            f"the engine's pool has {bound} connection(s) (pool_size + max_overflow); a worker inside an application "
            f"needs at least {RESERVED + 1}, one of them for handlers: "
            f"create_async_engine(url, pool_size={max(5, parallel_count)})"
        )
    return _shared(engine.pool, lambda: asyncio.Semaphore(bound - RESERVED)), bound - RESERVED


def _pool_limit(pool: Pool) -> int | None:
    if not isinstance(pool, QueuePool):
        return None
    size, overflow = pool.size(), pool._max_overflow  # noqa: SLF001 - there is no public way to ask
    return None if size == 0 or overflow < 0 else size + overflow


def _shared(pool: Pool, make: Callable[[], asyncio.Semaphore]) -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    known = _gates.get(pool)
    if known is None or known[0] is not loop:
        known = _gates[pool] = (loop, make())
    return known[1]
