"""A private copy of an application's engine: its settings and its database, with a pool of its own, so that the
application never lacks a connection for it.
"""

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import _sqlite


def clone_of(engine: AsyncEngine) -> AsyncEngine:
    """The copy. Its errors show no parameters: they may hold a payload, and are logged."""
    original = engine.sync_engine
    clone = Engine(original.pool.recreate(), original.dialect, original.url, hide_parameters=True)
    if clone.dialect.name == "sqlite":
        _sqlite.prepare(clone)
    clone.update_execution_options(**original.get_execution_options())
    return AsyncEngine(clone)
