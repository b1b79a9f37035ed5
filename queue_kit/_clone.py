"""A private copy of an application's engine: its settings and its database, with a pool of its own, so that the
application never lacks a connection for it.
"""

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only, greenlet_spawn

from queue_kit import _sqlite
from queue_kit._connecting import connect_whole


def clone_of(engine: AsyncEngine) -> AsyncEngine:
    """The copy. Its errors show no parameters: they may hold a payload, and are logged."""
    original = engine.sync_engine
    clone = Engine(original.pool.recreate(), original.dialect, original.url, hide_parameters=True)
    if clone.dialect.name == "sqlite":
        _sqlite.prepare(clone)
    else:
        _let_connect(clone.pool)
    clone.update_execution_options(**original.get_execution_options())
    return AsyncEngine(clone)


def _let_connect(pool: Any) -> None:
    """Have a pool's connections made whole, whoever is cancelled meanwhile."""
    connect = pool._invoke_creator  # noqa: SLF001 - there is no public way

    def whole(record: object) -> Any:
        return await_only(connect_whole(greenlet_spawn(connect, record), close=_terminate))

    pool._creator = whole  # noqa: SLF001


async def _terminate(connection: Any) -> None:
    connection.driver_connection.terminate()
