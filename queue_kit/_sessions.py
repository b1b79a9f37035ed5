"""How the sessions of one worker's handlers are opened, one a run (`_session.py`); and whether they reach the worker's
database and can be fenced, which is found out before the first.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from queue_kit._commits import Commits
from queue_kit._session import HandlerSession, Setting
from queue_kit._statements import database, workers
from queue_kit._transient import is_connection_lost
from queue_kit.errors import ConfigurationError
from queue_kit.event import AbortToken
from queue_kit.job import Claimed


class Sessions:
    """Opens the sessions of one worker's handlers."""

    def __init__(
        self,
        factory: Callable[[], AsyncSession],
        *,
        worker_id: UUID,
        lease: float,
        isolation: str | None,
        gate: asyncio.Semaphore,
        embedded: bool,
        joined: bool = False,
    ) -> None:
        self._factory = factory
        self._isolation = isolation
        self._setting = Setting(worker_id, lease, embedded, gate, Commits(), joined=joined)

    async def probe(self) -> None:
        """Make sure that the sessions reach the worker's own database and can be fenced, by looking for its row.

        Raises `ConfigurationError` when they do not.
        """
        session = self._factory()
        async with self._setting.gate:
            try:
                connection = await session.connection()
                level = await connection.get_isolation_level()
                try:
                    found = (
                        await session.execute(workers.worker_exists(), {"worker": self._setting.worker_id})
                    ).first()
                except DBAPIError as error:
                    found = None
                    if is_connection_lost(error):
                        raise
                if self._factory() is session:
                    raise ConfigurationError(
                        "session_factory gives the same session again; each run needs one of its own: pass an "
                        "async_sessionmaker, not an async_scoped_session"
                    )
                if found is None:
                    raise ConfigurationError(
                        "session_factory gives sessions on another database than the worker's engine"
                    )
                driver: Any = (await connection.get_raw_connection()).driver_connection
                if not (driver.in_transaction if self._setting.embedded else driver.is_in_transaction()):
                    raise ConfigurationError("sessions in AUTOCOMMIT cannot be fenced; give session_factory= others")
                self._setting.statement_timeout = await self._statement_timeout(connection)
            finally:
                await session.close()
        wanted = self._isolation or "READ COMMITTED"
        if not self._setting.embedded and level != wanted:
            self._setting.isolation = wanted

    async def _statement_timeout(self, connection: AsyncConnection) -> float:
        if self._setting.embedded:
            return math.inf
        milliseconds: int = await connection.scalar(database.statement_timeout())
        return milliseconds or math.inf

    def close(self) -> None:
        """Leave the engine as it was."""
        self._setting.commits.close()

    def open(self, claimed: Claimed, token: AbortToken) -> HandlerSession:
        """The session for one run; it connects when it is first used."""
        return HandlerSession(self._factory(), claimed, token, self._setting)
