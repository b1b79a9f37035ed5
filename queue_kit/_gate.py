"""How many handlers' sessions may hold a connection at once. The bound belongs to the engine's pool, so all workers on
one engine share it; on SQLite it is 1, a fair lock around every transaction of the queue."""

import asyncio
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool, QueuePool, StaticPool

from queue_kit.errors import ConfigurationError

RESERVED = 2
"""Connections of the pool that handlers never take: one for the host, one more so that it need not wait for it."""

_gates: WeakKeyDictionary[Pool, tuple[asyncio.AbstractEventLoop, asyncio.Semaphore]] = WeakKeyDictionary()


def gate_for(engine: Engine, parallel_count: int) -> tuple[asyncio.Semaphore, int | None]:
    """The gate of an engine in the running loop and its bound; `None` when the pool itself is unlimited.

    Raises `ConfigurationError` for a pool too small to share.
    """
    if engine.dialect.name == "sqlite":
        return _shared(engine.pool, 1), 1
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
    return _shared(engine.pool, bound - RESERVED), bound - RESERVED


def _pool_limit(pool: Pool) -> int | None:
    if not isinstance(pool, QueuePool):
        return None
    size, overflow = pool.size(), pool._max_overflow  # noqa: SLF001 - there is no public way to ask
    return None if size == 0 or overflow < 0 else size + overflow


def _shared(pool: Pool, bound: int) -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    known = _gates.get(pool)
    if known is None or known[0] is not loop:
        known = _gates[pool] = (loop, asyncio.Semaphore(bound))
    return known[1]
