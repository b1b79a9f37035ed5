"""The controller's deeds: each breaks something for a while, and notes in its ledger that it did.

The directed ones, `frozen` and `dark`, add the jobs that they need and wait for the moment that hurts.
"""

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import AmbiguousCommit, NewJob, add_jobs
from tests.proxy import Proxy
from tests.torture.actors import Slot
from tests.torture.handlers import TRIES
from tests.torture.ledger import Ledger, Ledgers, Line
from tests.torture.plan import Deed
from tests.torture.server import Server

ATTEMPTS = 10
"""How often a deed is tried: there may be no queue, no connection, no database to do it to at that moment."""

PATIENCE = 20.0
"""Seconds that a directed deed waits for its moment; a machine that is busy may let it pass."""

_TERMINATE = text("""
    SELECT pg_terminate_backend(pid) FROM (
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name ~ '^(worker|enqueuer)' ORDER BY random() LIMIT :count
    ) AS chosen
""")
_LOCK = text("SELECT id FROM queue_kit_job WHERE status = 1 ORDER BY random() LIMIT 3 FOR UPDATE SKIP LOCKED")


class Storm:
    """Does the deeds of one run."""

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        ledger: Ledger,
        ledgers: Ledgers,
        workers: Sequence[Slot],
        enqueuers: Sequence[Slot],
        server: Server | None,
        proxy: Proxy | None,
        lease: float,
    ) -> None:
        self._engine = engine
        self._ledger = ledger
        self._ledgers = ledgers
        self._workers = workers
        self._enqueuers = enqueuers
        self._server = server
        self._proxy = proxy
        self._lease = lease
        self._directed = 0
        self._network = asyncio.Lock()
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()

    async def rage(self, deeds: Sequence[Deed]) -> None:
        """Do all deeds, each at its time."""
        async with asyncio.TaskGroup() as group:
            for deed in deeds:
                group.create_task(self._do(deed))

    async def _do(self, deed: Deed) -> None:
        await asyncio.sleep(deed.at)
        act: Callable[[Deed], Awaitable[bool]] = getattr(self, f"_{deed.kind}")
        for _ in range(ATTEMPTS):
            try:
                if await act(deed):
                    self.done[deed.kind] += 1
                    return
            except Exception as error:  # another deed took the database away
                self._ledger.write("missed", kind=deed.kind, error=type(error).__name__)
            await asyncio.sleep(0.5)
        self.missed[deed.kind] += 1

    @contextlib.asynccontextmanager
    async def _one(self, slots: Sequence[Slot], pick: float) -> AsyncIterator[Slot]:
        """One of these processes, at which no other fault is; waits for one."""
        while not (free := [slot for slot in slots if not slot.busy]):
            await asyncio.sleep(0.05)
        slot = free[int(pick * len(free))]
        slot.busy = True
        try:
            yield slot
        finally:
            slot.busy = False

    # --- processes ----------------------------------------------------------------------------------------------------

    async def _kill(self, deed: Deed) -> bool:
        of_workers = deed.pick < 0.8
        pick = deed.pick / 0.8 if of_workers else (deed.pick - 0.8) / 0.2
        async with self._one(self._workers if of_workers else self._enqueuers, pick) as slot:
            self._ledger.write("kill", victim=slot.actor)
            await slot.kill()
            await slot.start()
        return True

    async def _deploy(self, deed: Deed) -> bool:
        """Have a worker end in order, whatever else goes on, and another one take its place."""
        async with self._one(self._workers, deed.pick) as slot:
            async with asyncio.timeout(PATIENCE):
                while slot.actor not in self._ledgers.ready():
                    await asyncio.sleep(0.05)
            self._ledger.write("deploy", victim=slot.actor)
            await slot.stop()
            await slot.start()
        return True

    async def _stop(self, deed: Deed) -> bool:
        async with self._one(self._workers, deed.pick) as slot:
            self._ledger.write("stop", victim=slot.actor)
            slot.send(signal.SIGSTOP)
            await asyncio.sleep(deed.leases * self._lease)
            slot.send(signal.SIGCONT)
        return True

    async def _frozen(self, deed: Deed) -> bool:
        """Freeze a worker in the middle of a job, until another one is in the middle of the same job."""
        mark = self._mark()
        (job_id,) = await self._add("long", 2.5 * self._lease)
        victim = None
        async for line in self._lines(mark):
            if line["do"] == "start" and line["job"] == job_id:
                victim = next((slot for slot in self._workers if slot.actor == line["actor"] and not slot.busy), None)
                break
        if victim is None:
            return False
        victim.busy = True
        try:
            await asyncio.sleep(0.3 * deed.pick * self._lease)
            victim.send(signal.SIGSTOP)
            self._ledger.write("frozen", victim=victim.actor, job=job_id)
            await asyncio.sleep(1.3 * self._lease)
            # Not for long: on SQLite it may have the one lock, and then nobody can start anything.
            elsewhere = await self._starts_elsewhere(mark, {job_id}, victim, seconds=2 * self._lease)
            victim.send(signal.SIGCONT)
            async for line in self._lines(mark, seconds=3 * self._lease):  # or the next fault would silence it
                if line["do"] == "settled" and (line["job"], line["actor"]) == (job_id, victim.actor):
                    break
            return elsewhere
        finally:
            victim.send(signal.SIGCONT)
            victim.busy = False

    # --- the database -------------------------------------------------------------------------------------------------

    async def _term(self, deed: Deed) -> bool:
        async with self._engine.connect() as connection:
            return bool((await connection.execute(_TERMINATE, {"count": 1 + int(3 * deed.pick)})).all())

    async def _restart(self, deed: Deed) -> bool:
        assert self._server is not None
        async with self._network:
            self._ledger.write("restart")
            await self._server.crash()
        return True

    async def _lock(self, deed: Deed) -> bool:
        async with self._engine.connect() as connection:
            locked = (await connection.execute(_LOCK)).scalars().all()
            self._ledger.write("lock", jobs=list(locked))
            await asyncio.sleep(deed.leases * self._lease)
            await connection.rollback()
        return bool(locked)

    # --- the network --------------------------------------------------------------------------------------------------

    async def _cut(self, deed: Deed) -> bool:
        assert self._proxy is not None
        connected = self._proxy.connected
        self._proxy.cut()
        return connected > 0

    async def _stall(self, deed: Deed) -> bool:
        """The connections that there are say nothing for a while; new ones are made."""
        assert self._proxy is not None
        async with self._network:
            connected = self._proxy.connected
            self._proxy.stall()
            await asyncio.sleep(deed.leases * self._lease)
            self._proxy.resume()
        return connected > 0

    async def _torn(self, deed: Deed) -> bool:
        """Break a commit: of a transaction or of an insert that commits itself, either before it arrives or so that
        only its reply is lost."""
        assert self._proxy is not None
        marker = (b"COMMIT", b'"key": "enqueuer')[int(2 * deed.pick)]
        async with self._network:
            self._proxy.tripped.clear()
            self._proxy.down_at(marker, delivered=deed.leases > 1.0)
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._proxy.tripped.wait()
            finally:
                self._proxy.down_at(b"what nobody says", delivered=False)
                self._proxy.up()
        return True

    async def _dark(self, deed: Deed) -> bool:
        """Take the network from workers whose jobs have just begun, and give it back when others are in the middle of
        the same jobs: what the first had to say of them then arrives."""
        assert self._proxy is not None
        proxied = {slot.actor: slot for slot in self._workers if slot.proxied}
        async with self._network:
            mark = self._mark()
            ids = set(await self._add("again", 0.3, count=6 * len(self._workers)))
            begun: set[int] = set()
            async for line in self._lines(mark, seconds=2 * self._lease):
                if line["do"] == "start" and line["job"] in ids and line["actor"] in proxied:
                    begun.add(line["job"])
                    if len(begun) >= 3:
                        break
            if not begun:
                return False
            self._ledger.write("dark", jobs=sorted(begun))
            self._proxy.stall()
            self._proxy.refusing = True
            try:
                await asyncio.sleep(self._lease)
                elsewhere = await self._starts_elsewhere(mark, begun, *proxied.values(), seconds=2 * self._lease)
                await asyncio.sleep(0.2 * self._lease)  # for more of them
            finally:
                self._proxy.up()
                self._proxy.resume()
        return elsewhere

    # --- jobs and their beginnings ------------------------------------------------------------------------------------

    async def _add(self, name: str, seconds: float, *, count: int = 1) -> Sequence[int]:
        """Add jobs that are the next to be run, and note them as an enqueuer would."""
        new = []
        for _ in range(count):
            self._directed += 1
            data = {
                "key": f"controller/{self._directed}",
                "seconds": seconds,
                "later": 2 * self._lease,
                "writes": False,
            }
            new.append(NewJob(name, data, 0, max_retry_count=TRIES))
        keys = [job.data["key"] for job in new]
        self._ledger.write("intent", keys=keys)
        try:
            ids = await add_jobs(self._engine, new)
        except AmbiguousCommit:
            self._ledger.write("ambiguous", keys=keys, error="AmbiguousCommit")
            raise
        except Exception as error:
            self._ledger.write("rolled_back", keys=keys, error=type(error).__name__)
            raise
        self._ledger.write("ack", keys=keys)
        return [job_id for job_id in ids if job_id is not None]

    def _mark(self) -> int:
        """Where the ledgers end now."""
        self._ledgers.read()
        return len(self._ledgers.lines)

    async def _lines(self, mark: int, *, seconds: float = PATIENCE) -> AsyncIterator[Line]:
        """What is written in the ledgers from a mark on, for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            end = self._mark()
            for line in self._ledgers.lines[mark:end]:
                yield line
            mark = end
            await asyncio.sleep(0.01)

    async def _starts_elsewhere(self, mark: int, jobs: set[int], *but: Slot, seconds: float = PATIENCE) -> bool:
        actors = {slot.actor for slot in but}
        async for line in self._lines(mark, seconds=seconds):
            if line["do"] == "start" and line["job"] in jobs and line["actor"] not in actors:
                return True
        return False
