"""One run, from an empty database to its evidence: start everybody, let the storm rage, drain, probe the wake-ups, stop
everybody in order, and read what is left.
"""

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import CronJob, JobRow, add_job, register_cron_jobs
from queue_kit.models import COMPLETED
from tests.proxy import Proxy, url_through
from tests.support import count_jobs
from tests.torture.actors import Slot
from tests.torture.checks import LATE
from tests.torture.database import engine_for, install
from tests.torture.evidence import Evidence, Probe, gather
from tests.torture.handlers import TRIES
from tests.torture.ledger import Ledger, Ledgers
from tests.torture.mutants import ACK_EARLY
from tests.torture.plan import CHAOS, Deed, plan
from tests.torture.role import Role
from tests.torture.server import Server, durable_server, somebodys_server
from tests.torture.storm import Storm

T = TypeVar("T")

PROBES = 2

_DEAFEN = text("""
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'worker%'
    AND (query ILIKE 'LISTEN%' OR query = 'SELECT 1')
""")
_LISTENING = text("""
    SELECT count(DISTINCT application_name) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'worker%'
    AND (query ILIKE 'LISTEN%queue_kit_cancel%' OR query = 'SELECT 1')
""")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    seed: int = 7
    seconds: float = 60.0
    workers: int = 4
    pullers: int = 6
    enqueuers: int = 3
    lease: float = 2.0
    poll: float = 1.5
    chaos: tuple[str, ...] = tuple(CHAOS)
    database: str = "postgresql"
    dsn: str | None = None
    mutant: str | None = None

    @property
    def drain(self) -> float:
        """Seconds that the queue may take to become empty once everything works again; after a minute it takes ten.
        Some mistakes let it never end."""
        return 90.0 if self.mutant is None else 15.0

    @property
    def deeds(self) -> list[Deed]:
        possible = set(self.chaos)
        if self.database == "sqlite":
            possible &= {"kill", "stop"}
        if self.dsn is not None:
            possible -= {"restart"}
        return plan(self.seed, self.seconds, sorted(possible))


@dataclass(slots=True)
class Result:
    """What a run was, and what it left."""

    options: Options
    evidence: Evidence
    done: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    started_in: float = 0.0
    raged_for: float = 0.0
    drained_in: float = 0.0
    took: float = 0.0


async def run(options: Options, folder: Path) -> Result:
    """Do it. `folder` is for the ledgers and logs, and for the database if it is a file."""
    began = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(_server(options))
        url = URL.create("sqlite+aiosqlite", database=str(folder / "queue.db")) if server is None else server.url
        engine = engine_for(url.render_as_string(hide_password=False), "controller")
        stack.push_async_callback(engine.dispose)
        await install(engine)
        proxy = None if server is None else await stack.enter_async_context(Proxy(url))
        scene = _Scene(options, folder, engine, server, proxy, url)
        stack.push_async_callback(scene.kill_all)
        await scene.play()
        return Result(
            options,
            await scene.evidence(),
            scene.storm.done,
            scene.storm.missed,
            started_in=scene.started_in,
            raged_for=scene.raged_for,
            drained_in=scene.drained_in,
            took=time.monotonic() - began,
        )


@contextlib.asynccontextmanager
async def _server(options: Options) -> AsyncIterator[Server | None]:
    if options.database == "sqlite":
        yield None
    else:
        async with durable_server() if options.dsn is None else somebodys_server(options.dsn) as server:
            yield server


class _Scene:
    """The processes and the storm of one run."""

    def __init__(
        self,
        options: Options,
        folder: Path,
        engine: AsyncEngine,
        server: Server | None,
        proxy: Proxy | None,
        url: URL,
    ) -> None:
        self._options = options
        self._folder = folder
        self._engine = engine
        self._url = url
        self._proxy = proxy
        self._ledgers = Ledgers(folder)
        self._ledger = Ledger(self._ledgers.path("controller"), "controller")
        self._workers = [self._slot("worker", number) for number in range(options.workers)]
        self._enqueuers = [self._slot("enqueuer", number) for number in range(options.enqueuers)]
        self._probes: list[Probe] = []
        self._entered = time.monotonic()
        self.started_in = 0.0
        self.raged_for = 0.0
        self.drained_in = 0.0
        self.storm = Storm(
            engine=engine,
            ledger=self._ledger,
            ledgers=self._ledgers,
            workers=self._workers,
            enqueuers=self._enqueuers,
            server=server,
            proxy=proxy,
            lease=options.lease,
        )

    def _slot(self, module: str, number: int) -> Slot:
        """Every other process reaches the database through the proxy; every third worker claims nothing ahead."""
        proxied = self._proxy is not None and number % 2 == 0
        cast = partial(self._role, self._url_for(proxied=proxied), module, 0 if number % 3 == 2 else None)
        log = self._folder / f"{module}.log"
        return Slot(f"{module}-{number}", module, cast, proxied=proxied, log=log)

    def _url_for(self, *, proxied: bool) -> URL:
        return url_through(self._proxy, self._url) if proxied and self._proxy is not None else self._url

    def _role(self, url: URL, module: str, prefetch: int | None, actor: str) -> Role:
        options = self._options
        its_own = (options.mutant == ACK_EARLY) == (module == "enqueuer")
        return Role(
            actor=actor,
            url=url.render_as_string(hide_password=False),
            ledger=str(self._ledgers.path(actor)),
            seed=f"{options.seed} {actor}",
            lease=options.lease,
            pullers=options.pullers,
            poll=options.poll,
            prefetch=prefetch,
            mutant=options.mutant if its_own else None,
        )

    # --- the acts -----------------------------------------------------------------------------------------------------

    async def play(self) -> None:
        """All of it."""
        await register_cron_jobs(self._engine, [CronJob("tick", "* * * * * *")])
        await asyncio.gather(*(slot.start() for slot in (*self._workers, *self._enqueuers)))
        await self._until(self._all_are_at_work, seconds=60)
        began = time.monotonic()
        self.started_in = began - self._entered
        async with asyncio.TaskGroup() as group:
            group.create_task(self.storm.rage(self._options.deeds))
            group.create_task(asyncio.sleep(self._options.seconds))
        self.raged_for = time.monotonic() - began
        await self._drain()
        if self._proxy is not None:
            for number in range(PROBES):
                self._probes.append(await self._probe(f"probe/{number}"))
        await self._stop(self._workers)

    async def _stop(self, slots: Sequence[Slot]) -> None:
        """Ask for their orderly end."""
        await self._until(lambda: self._ledgers.ready() >= {slot.actor for slot in slots}, seconds=30)
        await asyncio.gather(*(slot.stop() for slot in slots))

    async def _drain(self) -> None:
        began = time.monotonic()
        await self._stop(self._enqueuers)
        await _insist(lambda: register_cron_jobs(self._engine, []))
        await self._until(self._nothing_is_live, seconds=self._options.drain)
        self.drained_in = time.monotonic() - began

    async def _nothing_is_live(self) -> bool:
        return await count_jobs(self._engine, ~JobRow.is_complete) == 0

    async def _all_are_at_work(self) -> bool:
        actors = {slot.actor for slot in (*self._workers, *self._enqueuers)}
        return self._ledgers.ready() >= actors and await count_jobs(self._engine, JobRow.is_complete) > 0

    async def _probe(self, key: str) -> Probe:
        """Add a job in the moment in which nobody listens, and see when it begins."""

        async def all_listen() -> bool:
            async with self._engine.connect() as connection:
                return bool((await connection.execute(_LISTENING)).scalar_one() == len(self._workers))

        probe = Probe(key, None)
        if not await self._until(all_listen, seconds=30):
            return probe
        await asyncio.sleep(1.0)  # a worker that has just fallen asleep still looks a few times
        self._ledger.write("intent", keys=[key])
        async with self._engine.begin() as connection:
            deafened = (await connection.execute(_DEAFEN)).scalar_one()
            job_id = await add_job(connection, "idle", {"key": key}, max_retry_count=TRIES)
        added_at = time.monotonic()
        self._ledger.write("ack", keys=[key])
        self._ledger.write("deafened", count=deafened)

        def begun() -> list[float]:
            new = self._ledgers.read()
            return [line["t"] - added_at for line in new if line["do"] == "start" and line["job"] == job_id]

        started = await self._until(begun, seconds=2 * LATE)
        probe.seconds = started[0] if started else None
        return probe

    async def _until(self, condition: Callable[[], Any], *, seconds: float) -> Any:
        """Wait until a condition holds; false when it does not in time, which the checks then find."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return holds
            await asyncio.sleep(0.05)
        return False

    async def kill_all(self) -> None:
        """Leave no process behind."""
        if self._proxy is not None:
            self._proxy.up()
        for slot in (*self._workers, *self._enqueuers):
            slot.send(signal.SIGCONT)
            await slot.kill()

    async def evidence(self) -> Evidence:
        """What is left, once everybody has left."""
        self._ledgers.read()
        seen = await gather(self._engine, self._ledgers.lines)
        seen.probes = self._probes
        seen.deaths = [death for slot in (*self._workers, *self._enqueuers) for death in slot.deaths]
        seen.leased = [job.id for job in seen.jobs if job.status < COMPLETED and job.worker_id is not None]
        if self._proxy is None:
            async with self._engine.connect() as connection:
                found = await connection.execute(text("PRAGMA integrity_check"))
                seen.integrity = [str(each) for each in found.scalars()]
        return seen


async def _insist(attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat what a restart of the server may have broken."""
    for _ in range(50):
        with contextlib.suppress(Exception):
            return await attempt()
        await asyncio.sleep(0.2)
    return await attempt()
