"""Recurring jobs. A definition in `queue_kit_cron` is the truth; its occurrences are ordinary jobs, one live at a time.

`register_cron_jobs` reconciles definitions with a list in one transaction. The next occurrence is stored by whoever
settles the last one (`store_successor`), and by the sweep where none is live (`mend`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Connection, Executable, Result, Row, delete, insert, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from queue_kit._database import Database, check_database, own_commit, read_committed
from queue_kit._explain import explain
from queue_kit._schedule import Schedule
from queue_kit._statements import database, recurring
from queue_kit._statements.vocabulary import CRON, JOB
from queue_kit.errors import InvalidCron, InvalidJob
from queue_kit.job import Seconds, check_name, check_payload, check_priority, check_timeout
from queue_kit.models import CRON_ENTRIES, JOBS

Execute: TypeAlias = Callable[[Executable, Mapping[str, Any]], Result[Any]]


@dataclass(frozen=True, slots=True)
class CronJob:
    """A recurring job: `expression` has five fields, or six with leading seconds, read in the IANA `timezone`.

    `priority`, `data` and `handler_timeout` (seconds) are those of its occurrences. Raises `InvalidCron` naming what
    is wrong.

    >>> CronJob("report.daily", "0 6 * * *", timezone="Europe/Amsterdam").priority
    4
    """

    name: str
    expression: str
    priority: int = 4
    timezone: str = "UTC"
    data: Any = None
    handler_timeout: Seconds | None = None

    def __post_init__(self) -> None:
        try:
            check_name(self.name)
            check_priority(self.priority)
            object.__setattr__(self, "data", check_payload({} if self.data is None else self.data))
            object.__setattr__(self, "handler_timeout", check_timeout(self.handler_timeout))
        except InvalidJob as error:
            raise InvalidCron(str(error), name=str(self.name), expression=self.expression) from None
        self.schedule()

    def schedule(self) -> Schedule:
        """When this job runs."""
        return Schedule.parse(self.expression, self.timezone, name=self.name)


@dataclass(frozen=True, slots=True)
class CronPlan:
    """What a registration did, by name."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()


async def register_cron_jobs(db: Database, jobs: Sequence[CronJob]) -> CronPlan:
    """Make the cron definitions exactly `jobs`, in one transaction; what is not listed is removed, `[]` removes all.

    Serialised between processes, and never waiting for a running job. A changed expression takes effect at once; an
    overdue occurrence stays due. With an `AsyncSession` or `AsyncConnection` it happens when the caller commits.
    Raises `InvalidCron` for a duplicate name, before anything is changed, and `AmbiguousCommit` when an engine's
    connection breaks at COMMIT; registering again is then right.

    >>> async def on_startup(engine):
    ...     plan = await register_cron_jobs(engine, [CronJob("report.daily", "0 6 * * *")])
    ...     print(plan.added)
    """
    check_database(db)
    if not isinstance(jobs, Iterable):
        raise InvalidCron(f"register_cron_jobs takes a list of CronJob values, not {type(jobs).__name__}")
    wanted: dict[str, CronJob] = {}
    for job in jobs:
        if not isinstance(job, CronJob):
            raise InvalidCron(f"register_cron_jobs takes CronJob values, not {type(job).__name__}")
        if job.name in wanted:
            raise InvalidCron("is listed twice; give each entry its own name", name=job.name, expression=job.expression)
        wanted[job.name] = job
    try:
        return await _register(db, wanted)
    except DBAPIError as error:
        explain(error, db)
        raise


async def _register(db: Database, wanted: Mapping[str, CronJob]) -> CronPlan:
    if isinstance(db, AsyncSession):
        db = await db.connection()
    if isinstance(db, AsyncConnection):
        return await db.run_sync(_reconcile, wanted)
    async with read_committed(db) as connection:
        transaction = await connection.begin()
        plan = await connection.run_sync(_reconcile, wanted)
        with own_commit("the cron definitions"):
            await transaction.commit()
    return plan


def _reconcile(connection: Connection, wanted: Mapping[str, CronJob]) -> CronPlan:
    execute = connection.execute
    if connection.dialect.name == "postgresql":
        execute(recurring.lock_cron())
    known = {row.name: row for row in execute(recurring.cron_definitions())}
    added = [name for name in wanted if name not in known]
    removed = [name for name in known if name not in wanted]
    changed = [name for name, job in wanted.items() if name in known and _differs(known[name], job)]
    # A statement after the one that locked the definitions: it sees what their last holders stored.
    occurrences = {row.cron_name: row for row in execute(recurring.cron_occurrences())}

    for name in removed:
        execute(delete(CRON_ENTRIES).where(CRON.name == name))
    for name, occurrence in occurrences.items():
        if name not in wanted:  # also one that ran when its definition went, and waits for its retry now
            execute(delete(JOBS).where(JOB.id == occurrence.id))
    now: datetime = execute(database.database_time()).scalar_one()
    for name in added:
        execute(insert(CRON_ENTRIES).values(name=name, next_at=now, **_columns(wanted[name])))
    for name in changed:
        execute(update(CRON_ENTRIES).where(CRON.name == name).values(**_columns(wanted[name])))
        if name in occurrences:
            _refresh(execute, wanted[name], known[name], occurrences[name], now)
    for definition in execute(recurring.cron_missing()):
        _store_next(execute, definition, completed=False)
    touched = {*added, *changed}
    return CronPlan(tuple(added), tuple(changed), tuple(removed), tuple(name for name in wanted if name not in touched))


_COLUMNS = ("expression", "timezone", "priority", "data", "handler_timeout")


def _columns(job: CronJob) -> dict[str, Any]:
    return {column: getattr(job, column) for column in _COLUMNS}


def _differs(row: Row[Any], job: CronJob) -> bool:
    return any(getattr(row, column) != value for column, value in _columns(job).items())


def _refresh(execute: Any, job: CronJob, before: Row[Any], occurrence: Row[Any], now: datetime) -> None:
    values: dict[str, Any] = {"priority": job.priority, "data": job.data, "handler_timeout": job.handler_timeout}
    moved = (before.expression, before.timezone) != (job.expression, job.timezone)
    if moved and not occurrence.overdue:
        tick = job.schedule().after(now)
        values |= {"scheduled_at": tick, "cron_tick": tick, "retry_count": 0, "lost": 0}
        execute(update(CRON_ENTRIES).where(CRON.name == job.name).values(next_at=tick))
    execute(update(JOBS).where(JOB.id == occurrence.id).values(**values))


def store_successor(execute: Execute, cron_name: str, *, completed: bool) -> None:
    """Store the occurrence after one that ended, from the definition as it stands now.

    A definition that is gone, that somebody else has locked, or that cannot be scheduled gets none here; the sweep
    stores it later, or says why it cannot.
    """
    definition = execute(recurring.cron_successor(), {"entry": cron_name}).first()
    if definition is not None:
        with suppress(InvalidCron):
            _store_next(execute, definition, completed=completed)


def go_on(execute: Execute, cron_name: str) -> None:
    """Store the next occurrence of a definition that we have locked, unless one is live."""
    _store_next(execute, execute(recurring.cron_successor(), {"entry": cron_name}).one(), completed=False)


def hasten(execute: Execute, cron_name: str) -> int:
    """Make the occurrence of a definition that we have locked due now, or store one; returns its id.

    What waited for a later tick becomes now's, and the definition's `next_at` with it: that tick is stored next.
    """
    waiting = execute(recurring.hasten_occurrence(), {"entry": cron_name}).first()
    if waiting is not None:
        execute(recurring.advance_cron(), {"entry": cron_name, "tick": waiting.cron_tick, "completed": False})
        return int(waiting.id)
    running = execute(recurring.live_occurrence(), {"entry": cron_name}).first()
    if running is not None:
        return int(running.id)
    definition = execute(recurring.cron_successor(), {"entry": cron_name}).one()
    execute(recurring.insert_occurrence(), _occurrence(definition, definition.now))
    execute(recurring.advance_cron(), {"entry": cron_name, "tick": definition.now, "completed": False})
    return int(execute(recurring.live_occurrence(), {"entry": cron_name}).one().id)


@dataclass(frozen=True, slots=True)
class Mended:
    """What mending did: how many occurrences it stored, and which definitions nobody can schedule, with the reason."""

    stored: int
    unschedulable: Mapping[str, str]


def mend(execute: Execute) -> Mended:
    """Store an occurrence for each definition that has no live one."""
    stored, unschedulable = 0, {}
    for definition in execute(recurring.cron_missing(), {}).all():
        try:
            _store_next(execute, definition, completed=False)
            stored += 1
        except InvalidCron as error:
            unschedulable[definition.name] = str(error)
    return Mended(stored, unschedulable)


def _store_next(execute: Any, definition: Row[Any], *, completed: bool) -> None:
    """Store the next occurrence of a definition. Raises `InvalidCron`, with nothing changed, for one whose columns
    were written by hand."""
    noted = None
    if not definition.paused:
        job = CronJob(**{column: getattr(definition, column) for column in ("name", *_COLUMNS)})
        try:
            # Missed ticks coalesce: the next one lies after the last one stored and after now.
            tick = job.schedule().after(max(definition.next_at, definition.now))
        except (ValueError, ArithmeticError) as error:
            raise InvalidCron(f"it has no next tick: {error}", name=job.name, expression=job.expression) from error
        stored = execute(recurring.insert_occurrence(), _occurrence(job, tick)).first()
        if stored is not None:  # else one was stored after our snapshot, and its tick is noted already
            noted = tick
    execute(recurring.advance_cron(), {"entry": definition.name, "tick": noted, "completed": completed})


def _occurrence(job: CronJob | Row[Any], tick: datetime) -> dict[str, Any]:
    return {
        "job_name": job.name,
        "job_priority": job.priority,
        "job_data": job.data,
        "job_timeout": job.handler_timeout,
        "tick": tick,
    }
