"""What tells an idle worker that there is something to do before its next poll: NOTIFY on PostgreSQL, the commits of
this process on SQLite. Both only make things faster; losing them costs at most one poll.
"""

import asyncio
import random
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from queue_kit._clone import clone_of
from queue_kit._connecting import connect_whole
from queue_kit._link import in_a_line
from queue_kit._log import BackgroundLog
from queue_kit._patience import Patience

JOB_CHANNEL = "queue_kit_job"
CANCEL_CHANNEL = "queue_kit_cancel"

PROBE_EVERY = 10.0
PROBE_TIMEOUT = 5.0

_logger = BackgroundLog("queue_kit.worker")


class _Deaf(Exception):
    """LISTEN was accepted, and nothing is heard."""


class Listener:
    """Listens on a connection of its own, outside any pool, and reconnects when it breaks. `on_change` is told
    `listening` or `polling`."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        on_job: Callable[[], None],
        on_cancel: Callable[[], None],
        on_change: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._on_change = on_change
        self._callbacks = {JOB_CHANNEL: on_job, CANCEL_CHANNEL: on_cancel}
        self._broken = asyncio.Event()
        self._healthy: bool | None = None

    async def serve(self) -> None:
        """Listen for as long as this is awaited."""
        failures = 0
        while True:
            try:
                await self._listen()
            except _Deaf:
                _logger.warning(
                    "not listening, polling instead: this pooler lends its connections for a transaction at a time, so "
                    "LISTEN hears nothing; pass listen= an engine that reaches the database directly, or listen=False"
                )
                if self._healthy is not False:
                    self._on_change("polling")
                return
            except Exception as error:  # noqa: BLE001 - the poll carries on meanwhile
                failures = 1 if self._healthy else failures + 1
                self._report(healthy=False, error=error)
            await asyncio.sleep(min(0.25 * 2**failures, 5.0) * (0.5 + random.random() / 2))  # noqa: S311

    async def _listen(self) -> None:
        self._broken.clear()
        async with Patience(PROBE_TIMEOUT):
            driver = await connect_whole(self._connect(), close=_terminate)
        try:
            async with Patience(PROBE_TIMEOUT):
                driver.add_termination_listener(lambda *_: self._broken.set())
                # A pooler tells a process id of its own making.
                pooled = await driver.fetchval("SELECT pg_backend_pid()") != driver.get_server_pid()
                for channel in self._callbacks:
                    await driver.add_listener(channel, self._heard)
            if pooled:
                await self._make_sure_that_it_hears(driver)
            self._report(healthy=True)
            self._everything()  # nothing that was sent before LISTEN is delivered
            await self._probe(driver)
        finally:
            await _terminate(driver)

    async def _connect(self) -> Any:
        """The driver of a new connection. One taken from the worker's pool would be missed there, on a server that has
        no other left, by who renews the leases."""
        connection = await clone_of(self._engine).raw_connection()
        driver = connection.driver_connection
        connection.detach()  # the pool, which nobody keeps, does not close it
        return driver

    async def _make_sure_that_it_hears(self, driver: Any) -> None:
        """Raise `_Deaf` when the NOTIFY of another connection does not arrive."""
        channel, echo = f"queue_kit_echo_{secrets.token_hex(8)}", asyncio.Event()
        async with Patience(PROBE_TIMEOUT):
            await driver.add_listener(channel, lambda *_: echo.set())
            async with self._engine.begin() as other:
                await other.execute(select(func.pg_notify(channel, "")))
        try:
            async with Patience(PROBE_TIMEOUT):
                await echo.wait()
        except TimeoutError:
            raise _Deaf from None
        await driver.execute(f"UNLISTEN {channel}")

    async def _probe(self, driver: Any) -> None:
        """Ask a silent connection now and then: a half-open one gives no error by itself."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_EVERY):
                    await self._broken.wait()
                raise ConnectionError("the listening connection was closed")
            async with Patience(PROBE_TIMEOUT):
                await driver.execute("SELECT 1")

    def _heard(self, _connection: Any, _pid: int, channel: str, _payload: str) -> None:
        self._callbacks[channel]()

    def _everything(self) -> None:
        for callback in self._callbacks.values():
            callback()

    def _report(self, *, healthy: bool, error: BaseException | None = None) -> None:
        if healthy is self._healthy:
            return
        if not healthy:
            _logger.warning("not listening, polling instead: %s", error and in_a_line(error))
        elif self._healthy is False:
            _logger.warning("listening again")
        self._healthy = healthy
        self._on_change("listening" if healthy else "polling")


async def _terminate(driver: Any) -> None:
    driver.terminate()  # close() would wait for a server that may not answer


def on_commit(
    engine: AsyncEngine, *, committing: Callable[[], None], committed: Callable[[], None]
) -> Callable[[], None]:
    """Have these called in this loop for each commit of the engine in this process; returns a function that ends it.

    `committing` is called before: who waits for the lock that the commit still holds sees what is committed, who only
    looks may come too early. `committed` is called after, when the connection goes back to its pool.
    """
    loop = asyncio.get_running_loop()
    mark = object()  # on a pooled connection: it has committed since it was taken

    def call(callback: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(callback)

    def commits(connection: Connection) -> None:
        connection.info[mark] = True
        call(committing)

    def returns(_connection: object, record: ConnectionPoolEntry) -> None:
        if record.info.pop(mark, False):
            call(committed)

    pool = engine.sync_engine.pool
    event.listen(engine.sync_engine, "commit", commits)
    event.listen(pool, "checkin", returns)

    def end() -> None:
        event.remove(engine.sync_engine, "commit", commits)
        event.remove(pool, "checkin", returns)

    return end
