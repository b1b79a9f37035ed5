"""What must hold whatever happens. Each rule looks at what the database did and what the handlers went through, not at
what the worker thinks of itself; what breaks one is noted with the time and goes on."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from queue_kit.errors import Cancelled, DeadlineExceeded, LeaseLost, ShuttingDown
from queue_kit.hooks import Settled
from queue_kit.job import Claimed, Verdict
from queue_kit.models import CANCELLED, COMPLETED, FAILED
from tests.simulation.database import Row
from tests.simulation.handlers import NEVER_FAIL, RunRecord
from tests.simulation.loop import VirtualLoop, outside

MOMENT = 0.1
"""Seconds that things may take which happen at once."""

NOT_A_FAILURE = (LeaseLost, ShuttingDown, Cancelled)

WRITING = {"write", "checkpoint", "flaky"}

DEFECTS = ("the worker's task", "job %s was not settled", "the ending of job %s is stored, but")
"""How the log begins when something happened that nobody foresaw."""


class Rules:
    """Watches one simulation."""

    def __init__(self, loop: VirtualLoop, note: Callable[..., None], lease: float) -> None:
        self._loop = loop
        self._note = note
        self._lease = lease
        self.rows: dict[int, Row] = {}
        self.runs: dict[int, list[RunRecord]] = {}
        self.closed: set[object] = set()
        """Workers that were told to stop."""
        self.excused = False
        """Whether a run that was not settled is somebody else's fault."""
        self.broken: list[str] = []
        self._completions: Counter[int] = Counter()
        self._claims: Counter[tuple[object, int]] = Counter()
        self._reports: Counter[tuple[object, int]] = Counter()
        self.counts: Counter[str] = Counter()

    def breach(self, words: str) -> None:
        """A rule is broken."""
        self.broken.append(f"{self._loop.time():.3f} s: {words}")
        self._note("rules", words)

    # --- what the database did ----------------------------------------------------------------------------------------

    def claimed(self, row: Row, before: object) -> None:
        self._note("database", f"job {row.id} {row.name} claimed, {row.claim_no}, lost {row.lost}")
        self._claims[row.worker, row.id] += 1
        self.counts["claims"] += 1
        if before is not None:
            self.counts["lapses"] += 1
        for run in self.runs.get(row.id, ()):
            if run.runs and not run.token.aborted and self._loop.time() - row.locked_until > 2 * self._lease + 2.0:
                self._expect_abort(run, self._loop.time())

    def _expect_abort(self, run: RunRecord, since: float) -> None:
        """Within a twentieth of a lease, the time its process stands still beside."""
        pause = max(run.process.thaws_at - self._loop.time(), 0.0) + self._lease / 20 + MOMENT
        still = run.process.stood_still + self._loop.blocked
        self._loop.call_later(pause, self._check_abort, run, since, still, context=outside())

    def _check_abort(self, run: RunRecord, since: float, still: float) -> None:
        if not run.runs or run.token.aborted:
            return
        if run.process.stood_still + self._loop.blocked > still or run.process.frozen:
            self._expect_abort(run, since)
        else:
            self.breach(f"{run} goes on, though its lease was somebody else's at {since:.3f} s")

    def completed(self, row: Row) -> None:
        self._note("database", f"job {row.id} completed")
        self._completions[row.id] += 1
        self.counts["completions"] += 1
        self.counts["completions with effects"] += bool(row.effects)
        if self._completions[row.id] > 1:
            self.breach(f"job {row.id} was completed twice")
        run = self._run(row)
        if run is None or not run.returned:
            self.breach(f"job {row.id} {row.name} was completed, but its handler did not return")
        elif run.aborted_in_time:
            self.breach(f"{run} was completed, but was aborted before it ended")

    def _run(self, row: Row) -> RunRecord | None:
        for run in self.runs.get(row.id, ()):
            if run.claimed.claim_no == row.claim_no and run.worker == row.worker:
                return run
        return None

    # --- what the worker did ------------------------------------------------------------------------------------------

    def opened(self, run: RunRecord) -> None:
        self.runs.setdefault(run.claimed.job.id, []).append(run)

    def begun(self, run: RunRecord) -> None:
        self._note(run.process.name, f"begins job {run.claimed.job.id} {run.claimed.job.name}")
        self.counts["runs"] += 1
        if run.worker in self.closed:
            self.breach(f"{run} began after the worker was told to stop")
        for other in self.runs[run.claimed.job.id]:
            if other is not run and other.runs and other.process is run.process:
                self.breach(f"{run} began beside another run of it in the same process")

    def renewed(self, claimed: Claimed, name: str) -> None:
        self.breach(f"{name} renews job {claimed.job.id}, claim {claimed.claim_no}, after it was told that it is lost")

    def on_settled(self, record: Settled) -> None:
        """The hook of the worker."""
        key = record.worker_id, record.job.id
        self._note("hook", f"job {record.job.id} {record.outcome.verdict}")
        self.counts[record.outcome.verdict] += 1
        self._reports[key] += 1
        if self._reports[key] > self._claims[key]:
            self.breach(f"job {record.job.id} was reported more often than it was claimed")
        if record.outcome.verdict is Verdict.completed and not self._completions[record.job.id]:
            self.breach(f"job {record.job.id} was reported as completed, but is not")

    def logged(self, record: logging.LogRecord) -> None:
        """A line of the library's log."""
        if str(record.msg).startswith(DEFECTS) and not (self.excused and "not settled" in str(record.msg)):
            error = record.exc_info[1] if record.exc_info else None
            self.breach(f"the log says: {record.getMessage()} ({error!r})")

    # --- the end ------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """What must hold of the jobs in the end."""
        for row in self.rows.values():
            self._judge(row, self.runs.get(row.id, []))
        for complaint in self._loop.complaints:
            self.breach(f"asyncio says: {complaint}")

    def _judge(self, row: Row, runs: list[RunRecord]) -> None:
        self._judge_effects(row)
        failures = sum(_may_have_failed(run) for run in runs)
        if row.status == FAILED and self._run(row) is None:
            failures += 1  # given up without another run
        if row.retry_count > failures:
            self.breach(f"job {row.id} {row.name} has {row.retry_count} failures counted, but had {failures} at most")
        if row.status == CANCELLED and not row.cancel_requested:
            self.breach(f"job {row.id} was cancelled, though nobody asked")
        tries = row.retry_count + max(row.lost - 1, 0)
        if row.status == FAILED and row.name in NEVER_FAIL and tries < row.max_retry_count:
            self.breach(f"job {row.id} {row.name} failed after {tries} of {row.max_retry_count} tries")

    def _judge_effects(self, row: Row) -> None:
        wanted = 1 if row.status == COMPLETED and row.name in WRITING else 0
        if row.effects != wanted:
            self.breach(f"job {row.id} {row.name} has {row.effects} effects, but should have {wanted}")


def _may_have_failed(run: RunRecord) -> bool:
    """Whether a run may be counted as a failure of its job."""
    reason = run.token.reason
    if isinstance(reason, NOT_A_FAILURE):
        return False
    if isinstance(reason, DeadlineExceeded) or run.claimed.job.name in WRITING:
        return True  # the commit may have failed
    return run.claimed.job.name == "cancel itself" or (run.begun and not run.returned)


class Log(logging.Handler):
    """Hands the library's log to the rules, and to nobody else."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(logging.WARNING)
        self._rules = rules
        self._logger = logging.getLogger("queue_kit")

    def emit(self, record: logging.LogRecord) -> None:
        self._rules.logged(record)

    def __enter__(self) -> Self:
        self._before: Any = self._logger.propagate, self._logger.level
        self._logger.propagate = False
        self._logger.setLevel(logging.WARNING)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate, level = self._before
        self._logger.setLevel(level)
