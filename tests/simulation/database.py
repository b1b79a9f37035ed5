"""The virtual database: rows in memory, and what the worker's statements do to them. A statement is known by the
object that `queue_kit._statements` makes, and takes the very parameters that the driver would send.

Its clock is the loop's. Each statement is atomic; a row that a transaction has locked is skipped as by SKIP LOCKED.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Executable

from queue_kit._statements import claiming, history, settling, workers
from queue_kit.models import CANCELLED, COMPLETED, READY, SCHEDULED
from tests.simulation.loop import VirtualLoop, outside

ORIGIN = datetime(2026, 5, 1, tzinfo=UTC)
"""What the clock shows at second 0."""

Parameters = Mapping[str, Any]


class Ours(NamedTuple):
    """What a statement tells of a row."""

    id: int
    status: int = READY
    cancel_requested: bool = False


class Seen(NamedTuple):
    """What a look tells."""

    claimable: bool
    due_in: float | None
    cron_missing: bool = False


class Noted(NamedTuple):
    """What a worker learns that has written its row."""

    seen_at: datetime


class Oldest(NamedTuple):
    """Where the history begins."""

    minute: datetime | None
    now: datetime


@dataclass(slots=True)
class Row:
    """One job."""

    id: int
    name: str
    priority: int
    due: float
    max_retry_count: int
    data: str = "{}"
    status: int = READY
    worker: object = None
    claim_no: int = 0
    lease_until: float = -math.inf
    retry_count: int = 0
    lost: int = 0
    cancel_requested: bool = False
    locked_by: object = None
    locked_until: float = -math.inf
    """When a lock of somebody else's on it was last given up."""
    effects: int = 0
    """How often the effect of its handler was committed."""
    gone: bool = False

    @property
    def ended(self) -> bool:
        return self.status > READY or self.gone

    @property
    def place(self) -> tuple[int, datetime, int]:
        return self.priority, ORIGIN + timedelta(seconds=self.due), self.id

    def is_held_by(self, worker: object, claim_no: int) -> bool:
        """Whether the fence matches."""
        return self.worker == worker and self.claim_no == claim_no and self.status == READY and not self.gone


@dataclass(slots=True, eq=False)
class Transaction:
    """A handler's transaction on the server: the job's row that it has locked, and the effects not committed yet."""

    effects: int = 0
    row: Row | None = None
    completes: bool = False
    over: bool = False


class Witness(Protocol):
    """Who is told of what the database did."""

    def claimed(self, row: Row, before: object) -> None: ...
    def completed(self, row: Row) -> None: ...


class Database:
    """All rows, and the statements."""

    def __init__(self, loop: VirtualLoop, witness: Witness) -> None:
        self._loop = loop
        self._witness = witness
        self.rows: dict[int, Row] = {}
        self._ids = 0
        self.asleep_until: dict[object, float] = {}
        """Until when each worker asks to be notified."""
        self.listeners: dict[object, Callable[[], None]] = {}
        self.minutes: set[str] = set()
        """Of which there is history."""
        self.on_claim: Callable[[list[Row]], None] | None = None
        """Called when a claim arrives, with what its worker holds and did not run when it was sent."""
        self._answers: dict[Executable, Callable[[Parameters], Sequence[Any]]] = {
            claiming.claim(): self._claim,
            settling.complete(): self._complete,
            settling.remove(): self._remove,
            settling.close(): self._close,
            settling.put_back(): self._put_back,
            settling.still_ours(): self._still_ours,
            settling.stored(): self._stored,
            settling.renew(): self._renew,
            claiming.look(): self._look,
            claiming.promote(): self._promote,
            workers.greet(): self._greet,
            workers.seen(): self._seen,
            workers.worker_exists(): self._exists,
            workers.depart(): self._depart,
            history.add_history(): self._add_history,
            history.oldest_history(): self._oldest_history,
            history.prune_history(): self._prune_history,
        }
        self.reads = {
            settling.still_ours(),
            settling.stored(),
            claiming.look(),
            workers.worker_exists(),
            history.oldest_history(),
        }
        self.words = {statement: answer.__name__.strip("_") for statement, answer in self._answers.items()}

    @property
    def now(self) -> float:
        return self._loop.time()

    def add(
        self, name: str, *, priority: int = 5, delay: float = 0.0, max_retry_count: int = 3, commits_in: float = 0.0
    ) -> Row:
        """Insert a job in a transaction that commits so many seconds later. Whether anybody is notified then is
        decided at the insert."""
        self._ids += 1
        row = Row(self._ids, name, priority, self.now + delay, max_retry_count)
        row.status = SCHEDULED if delay > 0 else READY
        notifies = any(until > self.now for until in self.asleep_until.values())
        if commits_in:
            self._loop.call_later(commits_in, self._commit_insert, row, notifies, context=outside())
        else:
            self._commit_insert(row, notifies)
        return row

    def _commit_insert(self, row: Row, notifies: bool) -> None:
        self.rows[row.id] = row
        if notifies:
            for notify in list(self.listeners.values()):
                notify()

    def execute(self, statement: Executable, parameters: Parameters) -> Sequence[Any]:
        """What a statement returns."""
        return self._answers[statement](parameters)

    def leased_by(self, worker: object) -> list[Row]:
        """The jobs that a worker holds."""
        return [
            row for row in self.rows.values() if row.worker == worker and row.lease_until >= self.now and not row.ended
        ]

    def borrow(self, row: Row, *, lost: int) -> None:
        """Somebody else has had a job whose lease had lapsed, and given it back."""
        row.claim_no += 1
        row.lost = lost
        row.worker, row.lease_until = None, -math.inf

    def cancel(self, row: Row) -> None:
        """What `cancel_job` does."""
        if not row.ended:
            row.cancel_requested = True
            if row.status == SCHEDULED or row.lease_until < self.now:
                row.status, row.worker = CANCELLED, None

    # --- claim and sweep ----------------------------------------------------------------------------------------------

    def _free(self, parameters: Parameters) -> list[Row]:
        names = set(json.loads(parameters["names"]))
        after = parameters["after_priority"], parameters["after_due"], parameters["after_id"]
        free = [
            row
            for row in self.rows.values()
            if row.status == READY
            and not row.gone
            and row.lease_until < self.now
            and row.due <= self.now
            and row.name in names
            and row.place > after
        ]
        free.sort(key=lambda row: (row.priority, row.due, row.id))
        return free

    def _claim(self, parameters: Parameters) -> Sequence[Any]:
        running, held = set(json.loads(parameters["running_ids"])), set(json.loads(parameters["held_ids"]))
        if self.on_claim is not None:
            self.on_claim([row for row in self.leased_by(parameters["worker"]) if row.id in held - running])
        wanted, size = parameters["wanted"], 0
        candidates = [
            row
            for row in self._free(parameters)
            if row.locked_by is None
            and parameters["suspects_from"] <= _suspicion(row) < parameters["suspects_below"]
            and row.id not in running
            and (row.worker is None or row.id not in held)
        ]
        picked = []
        for position, row in enumerate(candidates[: wanted + parameters["ahead"]], 1):
            size += len(row.data)
            if position <= wanted or (_suspicion(row) == 0 and size <= parameters["bytes_ahead"]):
                picked.append(row)
        return [self._lease(row, parameters) for row in picked]

    def _lease(self, row: Row, parameters: Parameters) -> tuple[Any, ...]:
        before = row.worker
        row.lost = _suspicion(row)
        row.claim_no += 1
        row.worker = parameters["worker"]
        row.lease_until = self.now + parameters["lease"]
        self._witness.claimed(row, before)
        due = row.place[1].isoformat()
        described = (row.id, row.claim_no, row.name, row.priority, row.retry_count, row.lost, row.max_retry_count)
        return *described, None, None, None, row.cancel_requested, due, due, None, row.data, None, None, None

    def _look(self, parameters: Parameters) -> Sequence[Any]:
        due = [row.due for row in self.rows.values() if row.status == SCHEDULED]
        return [Seen(bool(self._free(parameters)), min(due) - self.now if due else None)]

    def _promote(self, parameters: Parameters) -> Sequence[Any]:
        due = [
            row
            for row in self.rows.values()
            if row.status == SCHEDULED and row.due <= self.now and row.locked_by is None
        ]
        for row in due:
            row.status = READY
        return [(row.id,) for row in due]

    # --- settle and renew ---------------------------------------------------------------------------------------------

    def _ours(self, parameters: Parameters, *, locked: bool = False) -> Iterable[tuple[Row, dict[str, Any]]]:
        for ending in _endings(parameters):
            row = self.rows[ending["id"]]
            if row.is_held_by(parameters["worker"], ending["claim_no"]) and (locked or row.locked_by is None):
                yield row, ending

    def _complete(self, parameters: Parameters) -> Sequence[Any]:
        return [self._end(row, COMPLETED) for row, _ in self._ours(parameters)]

    def _remove(self, parameters: Parameters) -> Sequence[Any]:
        ended = []
        for row, _ in self._ours(parameters):
            ended.append(self._end(row, COMPLETED))
            row.gone = True
        return ended

    def _close(self, parameters: Parameters) -> Sequence[Any]:
        ended = []
        for row, ending in self._ours(parameters):
            row.retry_count += ending["failed"]
            ended.append(self._end(row, ending["status"]))
        return ended

    def _put_back(self, parameters: Parameters) -> Sequence[Any]:
        moved = []
        for row, ending in self._ours(parameters):
            row.worker, row.lease_until = None, -math.inf
            row.retry_count += ending["failed"]
            row.lost = 0 if ending["forgiven"] else row.lost + ending["lapsed"]
            if (delay := ending.get("delay")) is not None:
                row.due = self.now + delay
            if row.cancel_requested:
                row.status = CANCELLED
            elif row.due > self.now:
                row.status = SCHEDULED
            moved.append(Ours(row.id))
        return moved

    def _end(self, row: Row, status: int) -> Ours:
        row.status, row.lease_until = status, -math.inf
        if status == COMPLETED:
            self._witness.completed(row)
        return Ours(row.id)

    def _stored(self, parameters: Parameters) -> Sequence[Any]:
        row = self.rows.get(parameters["job_id"])
        return [] if row is None or row.gone else [row]

    def _still_ours(self, parameters: Parameters) -> Sequence[Any]:
        found = []
        for ending in _endings(parameters):
            row = self.rows[ending["id"]]
            if row.worker == parameters["worker"] and row.claim_no == ending["claim_no"] and not row.gone:
                found.append(Ours(row.id, row.status))
        return found

    def _renew(self, parameters: Parameters) -> Sequence[Any]:
        renewed = []
        for row, _ in self._ours(parameters):
            row.lease_until = self.now + parameters["lease"]
            renewed.append(Ours(row.id, row.status, row.cancel_requested))
        return renewed

    # --- the worker's row ---------------------------------------------------------------------------------------------

    def _greet(self, parameters: Parameters) -> Sequence[Any]:
        self.asleep_until[parameters["id"]] = -math.inf
        return [Noted(self._time())]

    def _seen(self, parameters: Parameters) -> Sequence[Any]:
        if parameters["worker"] not in self.asleep_until:
            return []
        asleep_for = parameters["asleep_for"]
        self.asleep_until[parameters["worker"]] = -math.inf if asleep_for is None else self.now + asleep_for
        return [Noted(self._time())]

    def _exists(self, parameters: Parameters) -> Sequence[Any]:
        return [(parameters["worker"],)] if parameters["worker"] in self.asleep_until else []

    def _depart(self, parameters: Parameters) -> Sequence[Any]:
        self.asleep_until.pop(parameters["worker"], None)
        return ()

    # --- history: it only informs, and no rule is about it ------------------------------------------------------------

    def _time(self) -> datetime:
        return ORIGIN + timedelta(seconds=self.now)

    def _add_history(self, parameters: Parameters) -> Sequence[Any]:
        for row in json.loads(parameters["batch"]):
            self.minutes.add(row["minute"])
        return ()

    def _oldest_history(self, parameters: Parameters) -> Sequence[Any]:
        minute = min(map(datetime.fromisoformat, self.minutes), default=None)
        return [Oldest(None if minute is None else minute.replace(tzinfo=UTC), self._time())]

    def _prune_history(self, parameters: Parameters) -> Sequence[Any]:
        before = parameters["before"].replace(tzinfo=None)
        self.minutes = {minute for minute in self.minutes if datetime.fromisoformat(minute) >= before}
        return ()

    # --- a handler's transaction --------------------------------------------------------------------------------------

    def lock(self, transaction: Transaction, row: Row, worker: object, claim_no: int) -> bool | None:
        """Check the fence and lock the row: whether it matched; `None` while somebody else has the row locked."""
        if transaction.over:
            return False
        if row.locked_by not in (None, transaction):
            return None
        if not row.is_held_by(worker, claim_no):
            return False
        transaction.row, row.locked_by = row, transaction
        return True

    def commit(self, transaction: Transaction, *, lease: float) -> None:
        """Commit what a transaction did: its effects, with the completion of its job or a new lease."""
        row = transaction.row
        if transaction.over or row is None:
            raise ConnectionResetError("the server has rolled this transaction back")
        if transaction.completes:
            row.effects += transaction.effects
            self._end(row, COMPLETED)
        else:
            row.lease_until = self.now + lease
        self.rollback(transaction)

    def rollback(self, transaction: Transaction) -> None:
        """End a transaction, and give up its lock."""
        transaction.over = True
        if transaction.row is not None and transaction.row.locked_by is transaction:
            self.unlock(transaction.row)

    def unlock(self, row: Row) -> None:
        """Give up a lock."""
        row.locked_by, row.locked_until = None, self.now


def _endings(parameters: Parameters) -> list[dict[str, Any]]:
    """Objects, or arrays of what every ending begins with."""
    given = json.loads(parameters["batch"])
    return [each if isinstance(each, dict) else dict(zip(("id", "claim_no"), each, strict=True)) for each in given]


def _suspicion(row: Row) -> int:
    return row.lost + (row.worker is not None)
