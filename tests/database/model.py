"""The queue as plain values: what becomes of a job's row with each thing that can happen to it. `test_model.py` holds
the database against it after every step, so this is the specification of all transitions, to be read.

It knows no SQL and no cron expression (only how long the period of an entry is), and its clock stands still until it is
moved. Jobs and entries have the columns of their tables.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from queue_kit import CronJob, NewJob
from queue_kit.job import Outcome, Verdict

SCHEDULED, READY, COMPLETED, FAILED, CANCELLED = range(5)
NEVER = datetime.min.replace(tzinfo=UTC)
MOST_ERRORS = 10
PERIODS = {"* * * * *": 60, "*/5 * * * *": 300, "0 * * * *": 3_600}
"""The cron expressions that the model knows, and the seconds between their ticks."""


@dataclass
class Job:
    """A job's row. Its id is the database's to give; it is 0 until then."""

    name: str
    scheduled_at: datetime
    created_at: datetime
    updated_at: datetime
    priority: int
    data: Any
    id: int = 0
    status: int = READY
    lease_until: datetime = NEVER
    worker_id: UUID | None = None
    claim_no: int = 0
    retry_count: int = 0
    lost: int = 0
    max_retry_count: int | None = None
    cancel_requested: bool = False
    handler_timeout: float | None = None
    unique_key: str | None = None
    cron_name: str | None = None
    cron_tick: datetime | None = None
    errors: list[Any] | None = None
    trace_context: None = None

    @property
    def is_live(self) -> bool:
        return self.status < COMPLETED

    @property
    def suspicion(self) -> int:
        """How often its lease has lapsed, if it is claimed now."""
        return self.lost + (self.worker_id is not None)


@dataclass
class Entry:
    """The row of a cron definition."""

    name: str
    expression: str
    timezone: str
    priority: int
    data: Any
    handler_timeout: float | None
    next_at: datetime
    last_completed_at: datetime | None = None
    paused: bool = False

    def tick_after(self, instant: datetime) -> datetime:
        period = PERIODS[self.expression]
        return datetime.fromtimestamp((instant.timestamp() // period + 1) * period, UTC)


class Worker(NamedTuple):
    """What distinguishes one worker from another."""

    id: UUID
    names: frozenset[str]
    lease: timedelta
    deletes: bool = False


class Fence(NamedTuple):
    """What names one run of one job."""

    job_id: int
    worker: Worker
    claim_no: int


class Queue:
    """All jobs and cron definitions, and the database's clock."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.jobs: list[Job] = []
        self.entries: dict[str, Entry] = {}

    # --- looking ------------------------------------------------------------------------------------------------------

    def is_leased(self, job: Job) -> bool:
        return job.status == READY and job.lease_until >= self.now

    def is_pending(self, job: Job) -> bool:
        return job.is_live and job.scheduled_at <= self.now and not self.is_leased(job)

    def state(self, job: Job) -> str:
        if self.is_leased(job):
            return "running"
        return ("scheduled", "ready", "completed", "failed", "cancelled")[job.status]

    def holder(self, key: str | None) -> Job | None:
        """The live job that holds a unique key."""
        return next((job for job in self.jobs if job.is_live and key is not None and job.unique_key == key), None)

    def occurrence(self, cron_name: str | None) -> Job | None:
        """The live occurrence of a cron definition."""
        live = (job for job in self.jobs if job.is_live and cron_name is not None and job.cron_name == cron_name)
        return next(live, None)

    def run_by(self, fence: Fence) -> Job | None:
        """The job of a run, unless it was claimed again or given back since."""
        named = (fence.job_id, fence.worker.id, fence.claim_no)
        return next((job for job in self.jobs if (job.id, job.worker_id, job.claim_no) == named), None)

    def held(self, fence: Fence) -> Job | None:
        """The job that a run holds: until it ends, or until somebody claims the job after the lease has lapsed."""
        job = self.run_by(fence)
        return job if job is not None and job.status == READY else None

    # --- adding -------------------------------------------------------------------------------------------------------

    def add(self, new: NewJob[Any]) -> Job | None:
        """A job is added, unless a live one holds its key."""
        if self.holder(new.unique_key):
            return None
        due = new.scheduled_at or self.now + timedelta(seconds=new.delay or 0)
        job = Job(new.name, due, self.now, self.now, new.priority, new.payload, unique_key=new.unique_key)
        job.handler_timeout, job.max_retry_count = new.handler_timeout, new.max_retry_count
        self.jobs.append(job)
        self._place(job)
        return job

    def hand_over(self, job: Job, new: Iterable[NewJob[Any]]) -> bool:
        """The handler of a job adds jobs in its session: the job's own key is free for one of them."""
        wanted = job.unique_key is not None and job.unique_key in [each.unique_key for each in new]
        if wanted:
            job.unique_key = None
        return wanted

    def _place(self, job: Job) -> None:
        """A due time was written: a ready job that is not due yet is scheduled."""
        if job.status == READY and job.scheduled_at > self.now:
            job.status = SCHEDULED

    def promote(self) -> int:
        """Scheduled jobs that are due become ready."""
        due = [job for job in self.jobs if job.status == SCHEDULED and job.scheduled_at <= self.now]
        for job in due:
            job.status = READY
        return len(due)

    # --- claiming -----------------------------------------------------------------------------------------------------

    def claimable(self, worker: Worker) -> list[Job]:
        """What a worker may claim, best first."""
        free = (job for job in self.jobs if job.status == READY and job.lease_until < self.now)
        due = (job for job in free if job.scheduled_at <= self.now and job.name in worker.names)
        return sorted(due, key=lambda job: (job.priority, job.scheduled_at, job.id))

    def claim(
        self, worker: Worker, wanted: int, *, ahead: int, held: Collection[int], suspicions: Collection[int]
    ) -> list[Job]:
        """A worker leases up to `wanted` jobs, and of the next `ahead` those that never lost a lease."""
        free = [job for job in self.claimable(worker) if job.worker_id is None or job.id not in held]
        seen = [job for job in free if job.suspicion in suspicions][: wanted + ahead]
        claimed = seen[:wanted] + [job for job in seen[wanted:] if job.suspicion == 0]
        for job in claimed:
            job.lost = job.suspicion
            job.claim_no += 1
            job.worker_id, job.lease_until = worker.id, self.now + worker.lease
        return claimed

    def renew(self, fences: Iterable[Fence]) -> dict[int, bool]:
        """Leases are extended; whether each job that is still held is to be cancelled."""
        held = [(job, fence.worker) for fence in fences if (job := self.held(fence))]
        for job, worker in held:
            job.lease_until = self.now + worker.lease
        return {job.id: job.cancel_requested for job, _ in held}

    # --- settling -----------------------------------------------------------------------------------------------------

    def settle(self, fence: Fence, outcome: Outcome) -> bool:
        """A run ends, unless the job is not its own any more; whether an ending of this run stands."""
        job = self.held(fence)
        if job is None:
            return self.run_by(fence) is not None
        job.updated_at, job.lease_until = self.now, NEVER
        job.retry_count += outcome.verdict in (Verdict.failed, Verdict.retried)
        if outcome.error is not None:
            job.errors = [*(job.errors or ()), dict(outcome.error)][-MOST_ERRORS:]
        match outcome.verdict:
            case Verdict.completed:
                self._end(job, COMPLETED, deleted=fence.worker.deletes)
            case Verdict.failed:
                self._end(job, FAILED, deleted=fence.worker.deletes)
            case Verdict.cancelled:
                self._end(job, CANCELLED)
            case Verdict.retried:
                self._put_back(job, outcome.delay)
            case Verdict.snoozed:
                job.lost = 0
                self._put_back(job, outcome.delay)
            case Verdict.released if outcome.error is not None:  # the database's connection broke the run off
                job.lost += 1
                self._put_back(job, outcome.delay)
            case Verdict.released:
                self._put_back(job, None)
        return True

    def _end(self, job: Job, status: int, *, deleted: bool = False) -> None:
        job.status = status
        if deleted:
            self.jobs.remove(job)
        entry = self.entries.get(job.cron_name or "")
        if entry is not None:
            self._succeed(entry)
            if status == COMPLETED:
                entry.last_completed_at = self.now

    def _put_back(self, job: Job, delay: float | None) -> None:
        job.worker_id = None
        if delay is not None:
            job.scheduled_at = self.now + timedelta(seconds=delay)
        if job.cancel_requested:
            job.status = CANCELLED
        self._place(job)

    # --- operating ----------------------------------------------------------------------------------------------------

    def cancel(self, job: Job) -> str:
        """A job that waits is cancelled, one that runs is asked to end, one that has ended stays as it is."""
        if job.is_live:
            job.cancel_requested = True
            if not self.is_leased(job):
                job.status, job.updated_at, job.worker_id = CANCELLED, self.now, None
        return self.state(job)

    def retry(self, job: Job) -> bool:
        """A failed or cancelled job is queued again, unless its key is held by another one by now."""
        if job.status not in (FAILED, CANCELLED) or self.holder(job.unique_key):
            return False
        if self.occurrence(job.cron_name):
            job.cron_name = None  # its successor waits already, so it runs again as an ordinary job
        job.scheduled_at = job.updated_at = self.now
        job.status, job.lease_until, job.worker_id = READY, NEVER, None
        job.retry_count, job.lost, job.cancel_requested = 0, 0, False
        return True

    def prune(self, age: timedelta, failed_age: timedelta) -> int:
        """What ended longer ago than this is deleted; returns how many."""
        kept_for = {COMPLETED: age, FAILED: failed_age, CANCELLED: age}
        kept = [job for job in self.jobs if job.is_live or self.now - job.updated_at <= kept_for[job.status]]
        pruned = len(self.jobs) - len(kept)
        self.jobs = kept
        return pruned

    # --- cron ---------------------------------------------------------------------------------------------------------

    def _succeed(self, entry: Entry) -> None:
        """An entry without a live occurrence gets one, at the first tick after now and after the last one stored."""
        if self.occurrence(entry.name):
            return
        entry.next_at = entry.tick_after(max(entry.next_at, self.now))
        job = Job(entry.name, entry.next_at, self.now, self.now, entry.priority, entry.data)
        job.cron_name, job.cron_tick, job.handler_timeout = entry.name, entry.next_at, entry.handler_timeout
        self.jobs.append(job)
        self._place(job)

    def mend(self) -> int:
        """The sweep stores the occurrences that are missing; returns how many."""
        before = len(self.jobs)
        for entry in self.entries.values():
            self._succeed(entry)
        return len(self.jobs) - before

    def register(self, wanted: Sequence[CronJob]) -> None:
        """The definitions become exactly these. What runs is left alone, and what is overdue stays due."""
        waiting = {job.cron_name: job for job in self.jobs if job.is_live and job.cron_name and not self.is_leased(job)}
        names = {new.name for new in wanted}
        self.jobs = [job for job in self.jobs if job.cron_name in names or waiting.get(job.cron_name) is not job]
        before, self.entries = self.entries, {}
        for new in wanted:
            columns = (new.name, new.expression, new.timezone, new.priority, new.data, new.handler_timeout)
            old = before.get(new.name) or Entry(*columns, next_at=self.now)
            entry = self.entries[new.name] = Entry(*columns, old.next_at, old.last_completed_at)
            if entry != old and new.name in waiting:
                self._refresh(waiting[new.name], entry, moved=entry.expression != old.expression)
        self.mend()

    def _refresh(self, job: Job, entry: Entry, *, moved: bool) -> None:
        job.priority, job.data, job.handler_timeout = entry.priority, entry.data, entry.handler_timeout
        if moved and job.scheduled_at > self.now:
            entry.next_at = job.scheduled_at = job.cron_tick = entry.tick_after(self.now)
            job.retry_count = job.lost = 0
            self._place(job)
