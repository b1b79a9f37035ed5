"""The worker's store and its handlers' sessions over the simulated network. The store is the real one, with a `Wire`
where its transactions have their engine, so what it makes of replies, of lost ones and of rows that others have locked
is tested too.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from sqlalchemy import Executable
from sqlalchemy.ext.asyncio import create_async_engine

from queue_kit._endings import Settlement
from queue_kit._sessions import Sessions
from queue_kit._store import Renewal, Store
from queue_kit._transactions import Transactions
from queue_kit._transient import is_connection_lost
from queue_kit.errors import JobAborted, LeaseLost, ShuttingDown
from queue_kit.event import AbortToken
from queue_kit.job import Claimed, Outcome
from tests.simulation.database import Database, Transaction
from tests.simulation.loop import VirtualLoop, outside
from tests.simulation.network import Wire

ENGINE = create_async_engine("postgresql+asyncpg://nobody@nowhere.invalid/none")
"""Gives the store its dialect; nothing ever connects."""

LOCK_LOOK = 0.05
"""Seconds between two looks of a transaction that waits for a row."""


class WiredTransactions(Transactions):
    """A worker's transactions, with a wire where their engine is."""

    def __init__(self, wire: Wire, *, lease: float) -> None:
        super().__init__(ENGINE, gate=asyncio.Semaphore(1), lease=lease)
        self._single = self._reading = self._transactions = wire  # type: ignore[assignment]

    async def _execute(
        self, engine: Any, statement: Executable, parameters: Mapping[str, Any], *, commits: bool
    ) -> Sequence[Any]:
        async with engine.connect() as connection:
            return (await connection.execute(statement, parameters)).all()

    async def dispose(self) -> None:
        """There is no pool."""


class SimulatedStore(Store):
    """The store on a wire. It tells `on_renewal` of every lease that the core asks to renew after it was told that it
    is lost."""

    def __init__(
        self,
        wire: Wire,
        *,
        worker_id: UUID,
        names: Sequence[str],
        lease: float,
        deletes: bool,
        on_renewal: Callable[[Claimed], None],
    ) -> None:
        super().__init__(
            WiredTransactions(wire, lease=lease),
            worker_id=worker_id,
            names=names,
            lease=lease,
            delete_completed=deletes,
            delete_failed=False,
        )
        self._told: set[tuple[int, int]] = set()
        self._on_renewal = on_renewal

    async def settle(self, endings: Sequence[tuple[Claimed, Outcome]]) -> list[Settlement]:
        settled = await super().settle(endings)
        self._told |= {_fence(job) for (job, _), fate in zip(endings, settled, strict=True) if fate is Settlement.lost}
        return settled

    async def renew(self, claimed: Sequence[Claimed]) -> Renewal:
        for job in claimed:
            if _fence(job) in self._told:
                self._on_renewal(job)
        renewal = await super().renew(claimed)
        self._told |= {
            _fence(job) for job in claimed if job.job.id not in renewal.ours and job.job.id not in renewal.locked
        }
        return renewal


def _fence(claimed: Claimed) -> tuple[int, int]:
    return claimed.job.id, claimed.claim_no


class SimulatedSessions(Sessions):
    """Opens the sessions of one worker's handlers; `on_open` is told of each run, and may raise."""

    def __init__(
        self,
        loop: VirtualLoop,
        wire: Wire,
        database: Database,
        *,
        worker_id: UUID,
        lease: float,
        on_open: Callable[[Claimed, AbortToken], Any],
    ) -> None:
        self.loop, self.wire, self.database = loop, wire, database
        self.worker_id, self.lease = worker_id, lease
        self._on_open = on_open
        self.transactions: list[Transaction] = []

    def hang_up(self) -> None:
        """The process died, and the server noticed."""
        for transaction in self.transactions:
            self.database.rollback(transaction)

    def open(self, claimed: Claimed, token: AbortToken) -> Any:
        return SimulatedSession(self, claimed, token, self._on_open(claimed, token))

    def close(self) -> None:
        """Nothing was set up."""


class SimulatedSession:
    """One run's session: what the worker does with it, and at `session` what its handler does."""

    made = True
    busy = False

    def __init__(self, among: SimulatedSessions, claimed: Claimed, token: AbortToken, run: Any) -> None:
        self._among = among
        self._claimed = claimed
        self._token = token
        self._transaction: Transaction | None = None
        self._killed: JobAborted | None = None
        self._dead = False
        self.run = run

    @property
    def session(self) -> "SimulatedSession":
        return self

    @property
    def used(self) -> bool:
        return self._transaction is not None

    holds = used

    # --- what a handler does ------------------------------------------------------------------------------------------

    async def add_effect(self) -> None:
        """Write something, to be committed with the completion."""
        self._refuse_when_killed()
        if self._transaction is None:
            self._transaction = Transaction()
            self._among.transactions.append(self._transaction)
        transaction = self._transaction
        await self._send("effect", lambda: None)
        transaction.effects += 1

    async def checkpoint(self) -> None:
        """Commit what was written so far; the lease is checked and renewed."""
        await self._commit(None)

    # --- what the worker does -----------------------------------------------------------------------------------------

    async def commit(self, ending: Callable[[Any], None]) -> None:
        await self._commit(ending)

    def require(self, result: Any) -> None:
        if result.rowcount != 1:
            lost = LeaseLost("not ours any more")
            self._token.abort(lost)
            raise lost

    def broke(self, error: BaseException) -> bool:
        return self._dead and not isinstance(error, TimeoutError) and is_connection_lost(error)

    async def quiesce(self) -> None:
        """Nothing to wait for: it is not SQLite."""

    def kill(self) -> None:
        self._killed = self._token.reason or ShuttingDown("the worker gave this run up")
        self._cut()

    def retire(self) -> None:
        if self._killed is None:
            self._killed = LeaseLost("the run that this session belongs to is over")

    async def rollback_and_close(self) -> None:
        self._cut()

    async def _commit(self, ending: Callable[[Any], None] | None) -> None:
        self._token.raise_if_aborted()
        self._refuse_when_killed()
        transaction, store = self._transaction, self._among
        assert transaction is not None
        row, fence = store.database.rows[self._claimed.job.id], (store.worker_id, self._claimed.claim_no)
        while (matched := await self._send("fence", lambda: store.database.lock(transaction, row, *fence))) is None:
            await asyncio.sleep(LOCK_LOOK)
        transaction.completes = ending is not None
        answer = SimpleNamespace(rowcount=int(matched))
        if ending is None:
            self.require(answer)
        else:
            ending(SimpleNamespace(execute=lambda _statement, _parameters: answer))
        await self._send("commit", lambda: store.database.commit(transaction, lease=store.lease))
        self._transaction = None

    async def _send(self, word: str, apply: Callable[[], Any]) -> Any:
        try:
            return await self._among.wire.send(f"{word} {self._claimed.job.id}", apply)
        except BaseException:
            self._dead = True
            self._cut()
            raise

    def _refuse_when_killed(self) -> None:
        if self._killed is not None:
            raise self._killed.with_traceback(None)

    def _cut(self) -> None:
        """The server rolls the transaction back, as soon as it hears of it."""
        if self._transaction is not None:
            loop, database = self._among.loop, self._among.database
            loop.call_later(0.1, database.rollback, self._transaction, context=outside())
            self._transaction = None
