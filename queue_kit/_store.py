"""What a worker asks of the database: claim, settle, renew, sweep, each one statement or a few in one transaction
(`_transactions.py`). The statements are those of `_statements`, what goes in and comes out are values (`_rows.py`).
"""

import asyncio
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Executable, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from queue_kit import cron
from queue_kit._driver_sql import DriverSql
from queue_kit._endings import Settlement
from queue_kit._log import BackgroundLog
from queue_kit._rows import behind, claimed_of, endings_batch, fences_batch
from queue_kit._scan import Place
from queue_kit._statements import claiming, fencing, history, settling, workers
from queue_kit._statements.vocabulary import as_batch
from queue_kit._transactions import Transactions
from queue_kit._transient import is_transient
from queue_kit.job import Claimed, Outcome, Verdict, log_fields, printable
from queue_kit.models import READY

_logger = BackgroundLog("queue_kit.worker")

PROMOTE_LIMIT = 1_000
NO_LIMIT = 2**31 - 1

ASLEEP_SECONDS = 45.0
"""How long a worker that says that it sleeps is notified without saying it again; it does every 10 seconds."""

_ENDS_OCCURRENCE = (Verdict.completed, Verdict.failed, Verdict.cancelled)
"""How an occurrence of a cron entry ends, so that the next one is stored."""


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to do: a due job of ours, seconds to the first scheduled one, a cron entry without occurrence."""

    claimable: bool
    due_in: float | None
    cron_missing: bool


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a round of renewing found: whether each job still ours is to be cancelled, and which were locked."""

    ours: Mapping[int, bool]
    locked: frozenset[int]


class Store:
    """One worker's statements. Every method is one short transaction; errors are those of `Transactions`."""

    def __init__(
        self,
        transactions: Transactions,
        *,
        worker_id: UUID,
        names: Iterable[str],
        lease: float,
        delete_completed: bool,
        delete_failed: bool,
    ) -> None:
        self._transactions = transactions
        self.embedded = transactions.embedded
        self._own_rows = asyncio.Lock()
        """Held by what skips locked rows, so that a settle and a renewal do not skip each other's."""
        self.epoch = 0.0
        """What makes `time.monotonic()` the database's clock, in seconds since 1970; known once our row was written."""
        self.worker_id = worker_id
        self.lease = lease
        self._names = sorted(names)
        self._names_batch = as_batch(self._names)
        self._claim = claiming.claim()
        self._endings = _ending_statements(delete_completed=delete_completed, delete_failed=delete_failed)
        self._complete_one = DriverSql(fencing.remove_one() if delete_completed else fencing.complete_one())
        self._delete_completed = delete_completed
        self._unschedulable: frozenset[str] = frozenset()

    @property
    def engine(self) -> AsyncEngine:
        """The private engine, for whatever must connect as the worker does."""
        return self._transactions.engine

    @property
    def round_trip(self) -> float:
        """How far away the database is, in seconds."""
        return self._transactions.round_trip

    async def dispose(self) -> None:
        """Close the private pool."""
        await self._transactions.dispose()

    # --- claim --------------------------------------------------------------------------------------------------------

    async def claim(
        self,
        wanted: int,
        *,
        ahead: int = 0,
        bytes_ahead: int = 0,
        after: Place | None = None,
        running: Iterable[int] = (),
        held: Iterable[int] = (),
        suspects_from: int = 0,
        suspects_below: int = NO_LIMIT,
    ) -> list[Claimed]:
        """Lease up to `wanted` due jobs, best first, and up to `ahead` more, but no more bytes than `bytes_ahead`.

        A job that lost `n` leases is taken if `from <= n < below`, and never ahead. What this worker holds itself is
        not taken, also when its row lapses earlier than it seems from here.
        """
        rows = await self._transactions.write(
            self._claim,
            {
                "names": self._names_batch,
                "running_ids": as_batch(running),
                "held_ids": as_batch(held),
                **behind(after),
                "suspects_from": suspects_from,
                "suspects_below": suspects_below,
                "wanted": wanted,
                "ahead": ahead,
                "bytes_ahead": bytes_ahead,
                "worker": self.worker_id,
                "lease": self.lease,
            },
        )
        claimed = [claimed_of(row) for row in rows]
        claimed.sort(key=attrgetter("place"))
        return claimed

    # --- settle -------------------------------------------------------------------------------------------------------

    async def settle(self, endings: Sequence[tuple[Claimed, Outcome]]) -> list[Settlement]:
        """Write how runs ended: one statement a kind of ending, and one transaction for each ended cron occurrence.
        Each is of another job, since statements answer with ids.

        An ending that the database refuses does not hold up the others.
        """
        kinds: defaultdict[Executable, list[tuple[Claimed, Outcome]]] = defaultdict(list)
        occurrences = []
        for ending in endings:
            claimed, outcome = ending
            if claimed.cron_name is not None and outcome.verdict in _ENDS_OCCURRENCE:
                occurrences.append(ending)
            else:
                kinds[self._endings[outcome.verdict]].append(ending)
        fates: dict[int, Settlement] = {}
        for statement, kind in kinds.items():
            fates |= await self._settle_kind(statement, kind)
        for claimed, outcome in occurrences:
            fates |= await self._settle_occurrence(claimed, outcome)
        return [fates.get(claimed.job.id, Settlement.done) for claimed, _ in endings]

    async def _settle_kind(
        self, statement: Executable, endings: list[tuple[Claimed, Outcome]]
    ) -> dict[int, Settlement]:
        """What became of the endings that it did not write."""
        parameters = self._as_parameters(statement, endings)
        try:
            async with self._own_rows:
                settled = {row[0] for row in await self._transactions.write(statement, parameters)}
        except DBAPIError as error:
            if is_transient(error):
                raise
            if len(endings) == 1:
                job = endings[0][0].job
                _logger.exception(
                    "the ending of job %s was refused; its lease will lapse", job.id, extra=log_fields(job)
                )
                return {job.id: Settlement.lost}
            halves = endings[: len(endings) // 2], endings[len(endings) // 2 :]
            return {k: v for half in halves for k, v in (await self._settle_kind(statement, half)).items()}
        if len(settled) == len(endings):
            return {}
        return await self._fate_of([claimed for claimed, _ in endings if claimed.job.id not in settled])

    def _as_parameters(self, statement: Executable, endings: Sequence[tuple[Claimed, Outcome]]) -> Mapping[str, Any]:
        fences = statement is settling.complete() or statement is settling.remove()
        batch = fences_batch(claimed for claimed, _ in endings) if fences else endings_batch(endings)
        return {"batch": batch, "worker": self.worker_id}

    async def _settle_occurrence(self, claimed: Claimed, outcome: Outcome) -> dict[int, Settlement]:
        statement = self._endings[outcome.verdict]
        parameters = self._as_parameters(statement, [(claimed, outcome)])
        completed = outcome.verdict is Verdict.completed

        def write(connection: Connection) -> bool:
            settled = connection.execute(statement, parameters).first() is not None
            if settled:
                assert claimed.cron_name is not None
                cron.store_successor(connection.execute, claimed.cron_name, completed=completed)
            return settled

        try:
            if await self._transactions.as_one(write):
                return {}
        except DBAPIError as error:
            if is_transient(error):
                raise
            _logger.exception(
                "cron job %s: its next occurrence was refused; the sweep goes on",
                printable(str(claimed.cron_name)),
                extra=log_fields(claimed.job),
            )
            return await self._settle_kind(statement, [(claimed, outcome)])
        return await self._fate_of([claimed])

    async def _fate_of(self, claimed: Sequence[Claimed]) -> dict[int, Settlement]:
        """What became of jobs that a settle did not return: settled before, locked by somebody, or not ours."""
        found = await self._held(claimed)

        def fate(job_id: int) -> Settlement:
            status = found.get(job_id)
            if status is None:
                return Settlement.lost
            return Settlement.locked if status == READY else Settlement.done

        return {each.job.id: fate(each.job.id) for each in claimed}

    async def _held(self, claimed: Iterable[Claimed]) -> dict[int, int]:
        parameters = {"batch": fences_batch(claimed), "worker": self.worker_id}
        return {row.id: row.status for row in await self._transactions.read(settling.still_ours(), parameters)}

    def complete_in(self, transaction: Connection | Session, claimed: Claimed) -> Any:
        """Complete a job inside its handler's transaction; the result's rowcount tells whether it was still ours."""
        fence = fencing.fence(claimed.job.id, self.worker_id, claimed.claim_no)
        result = self._complete_one.execute(transaction, fence)
        if claimed.cron_name is not None and result.rowcount == 1:
            cron.store_successor(transaction.execute, claimed.cron_name, completed=True)
        return result

    async def was_committed(self, claimed: Claimed) -> bool | None:
        """After a commit whose reply was lost: whether it took place; `None` when the job is not ours any more."""
        status = (await self._held([claimed])).get(claimed.job.id)
        if status is None:
            return True if self._delete_completed and not await self._is_stored(claimed) else None
        return status != READY

    async def _is_stored(self, claimed: Claimed) -> bool:
        return bool(await self._transactions.read(settling.stored(), {"job_id": claimed.job.id}))

    # --- leases and sweep ---------------------------------------------------------------------------------------------

    async def renew(self, claimed: Sequence[Claimed]) -> Renewal:
        """Extend the leases of all jobs that are still ours."""
        parameters = {"batch": fences_batch(claimed), "worker": self.worker_id, "lease": self.lease}
        async with self._own_rows:
            rows = await self._transactions.write(settling.renew(), parameters)
        ours = {row.id: row.cancel_requested for row in rows}
        rest = [each for each in claimed if each.job.id not in ours]
        locked = {job_id for job_id, status in (await self._held(rest)).items() if status == READY} if rest else ()
        return Renewal(ours, frozenset(locked))

    async def look(self, *, after: Place | None = None) -> Look:
        """What there is to do."""
        (row,) = await self._transactions.read(claiming.look(), {"names": self._names_batch, **behind(after)})
        return Look(bool(row.claimable), row.due_in, bool(row.cron_missing))

    async def promote(self) -> int:
        """Make due jobs ready; returns how many, at most `PROMOTE_LIMIT`."""
        return len(await self._transactions.write(claiming.promote(), {"limit": PROMOTE_LIMIT}))

    async def mend_cron(self) -> int:
        """Store the missing occurrences of cron definitions; returns how many."""
        mended = await self._transactions.as_one(lambda connection: cron.mend(connection.execute))
        for name, problem in mended.unschedulable.items():
            if name not in self._unschedulable:
                _logger.error("cron job %s cannot be scheduled, register it again: %s", printable(name), problem)
        self._unschedulable = frozenset(mended.unschedulable)
        return mended.stored

    # --- the worker's row ---------------------------------------------------------------------------------------------

    async def greet(self) -> None:
        """Write this worker's row."""
        host, pid = socket.gethostname(), os.getpid()
        row = {"id": self.worker_id, "label": f"pid {pid}", "host": host, "pid": pid, "names": self._names}
        self._note_clock(await self._transactions.write(workers.greet(), row))

    async def check_in(self, running: int, *, asleep: bool) -> None:
        """Note in this worker's row that it is alive, and whether it asks to be notified; or write the row again when
        somebody deleted it."""
        asleep_for = ASLEEP_SECONDS if asleep else None
        row = {"worker": self.worker_id, "jobs_running": running, "asleep_for": asleep_for}
        noted = await self._transactions.write(workers.seen(), row)
        self._note_clock(noted)
        if not noted and not await self._transactions.read(workers.worker_exists(), {"worker": self.worker_id}):
            await self.greet()

    async def depart(self) -> None:
        """Delete this worker's row."""
        await self._transactions.write(workers.depart(), {"worker": self.worker_id})

    def _note_clock(self, written: Sequence[Row[Any]]) -> None:
        for row in written:
            self.epoch = row.seen_at.timestamp() - time.monotonic()

    # --- history ------------------------------------------------------------------------------------------------------

    async def add_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add what runs came to."""
        await self._transactions.write(history.add_history(), {"batch": as_batch(rows)})

    async def prune_history(self, days: float) -> None:
        """Delete what is older than so many days, at most a day's worth at once."""
        (oldest,) = await self._transactions.read(history.oldest_history(), {})
        if oldest.minute is not None:
            before = min(oldest.now - timedelta(days=days), oldest.minute + timedelta(days=1))
            await self._transactions.write(history.prune_history(), {"before": before})


def _ending_statements(*, delete_completed: bool, delete_failed: bool) -> Mapping[Verdict, Executable]:
    """What writes each kind of ending."""
    return {
        **dict.fromkeys(Verdict, settling.put_back()),
        Verdict.completed: settling.remove() if delete_completed else settling.complete(),
        Verdict.failed: settling.remove() if delete_failed else settling.close(),
        Verdict.cancelled: settling.close(),
    }
