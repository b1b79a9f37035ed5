"""Every exception that queue_kit raises, in one tree. Each carries what it knows as fields, so that a caller never
parses a message.

    QueueKitError
    ├── ConfigurationError          a worker, handler or engine that cannot work as it was set up
    │   └── SchemaMismatch          the database's tables do not fit this version of the library
    ├── InvalidJob (ValueError)     a job that must not be stored; names the field
    │   └── InvalidPayload          stored data that its handler's type no longer accepts
    ├── InvalidCron (ValueError)    an expression, time zone or list of cron jobs that cannot be scheduled
    ├── JobNotFound (LookupError)   no job has this id
    ├── CronJobNotFound (LookupError)   no cron entry has this name
    ├── JobConflict                 the job's state, or another job with its key, forbids the change
    ├── AmbiguousCommit             the connection broke at COMMIT: the rows may or may not be stored
    ├── UnfencedCommit              a handler tried to commit beneath its session, past the fence
    ├── JobAborted                  why a running job must end
    │   ├── DeadlineExceeded        its time is up
    │   ├── LeaseLost               another worker may run it now
    │   ├── ShuttingDown            the worker stops; the job goes back to the queue
    │   └── Cancelled               somebody asked for it
    └── HandlerVerdict              raised by a handler to say how its run ends
        ├── Snooze                  run again later, nothing counted
        └── Discard                 failed now, no further tries
"""

from datetime import timedelta

_LONGEST_SNOOZE = timedelta(days=36_500).total_seconds()


class QueueKitError(Exception):
    """The root: catches everything that this library raises."""


class ConfigurationError(QueueKitError):
    """A worker, handler or engine that cannot work as it was set up. The message names the mend."""


class SchemaMismatch(ConfigurationError):
    """The database's tables do not fit this version of the library: said by a worker that starts, and by any call that
    misses a table or a column.

    `found` is the version in the database (`None`: no tables, or nobody has looked), `needed` the version that this
    library was built for.
    """

    def __init__(self, message: str, *, found: int | None, needed: int) -> None:
        super().__init__(message)
        self.found = found
        self.needed = needed


class InvalidJob(QueueKitError, ValueError):
    """A job that must not be stored. `field` names the argument, `path` the place inside a payload (`$.user.name`)."""

    def __init__(self, field: str, problem: str, *, path: str | None = None) -> None:
        super().__init__(f"{field}{f' at {path}' if path else ''}: {problem}")
        self.field = field
        self.problem = problem
        self.path = path


class InvalidPayload(InvalidJob):
    """Stored data that the handler's payload type no longer accepts: the job fails without being run."""


class InvalidCron(QueueKitError, ValueError):
    """A cron job that cannot be scheduled. `name` is the entry's name, `expression` what was given."""

    def __init__(self, problem: str, *, name: str | None = None, expression: object = None) -> None:
        super().__init__(f"cron job {name!r}: {problem}" if name is not None else problem)
        self.problem = problem
        self.name = name
        self.expression = expression


class JobNotFound(QueueKitError, LookupError):
    """No job has this id."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"there is no job with id {job_id}")
        self.job_id = job_id


class CronJobNotFound(QueueKitError, LookupError):
    """No cron entry has this name: it was not registered, or removed by a later registration."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no cron job named {name!r}")
        self.name = name


class JobConflict(QueueKitError):
    """The job cannot be changed as asked.

    `holder_id` is the live job that holds the same unique key, or `None` when the job's own state forbids the change.
    """

    def __init__(self, job_id: int, problem: str, *, holder_id: int | None = None) -> None:
        super().__init__(f"job {job_id}: {problem}")
        self.job_id = job_id
        self.holder_id = holder_id


class AmbiguousCommit(QueueKitError):
    """The connection broke while COMMIT was on its way, so the jobs may or may not be stored.

    Raised only where the library owns the transaction (an `AsyncEngine` was passed). Add again with the same
    `unique_key`, or look before adding again.
    """


class UnfencedCommit(QueueKitError):
    """A handler committed on the connection beneath its session, where the lease cannot be checked. Nothing was
    committed; call `session.commit()` instead."""


class JobAborted(QueueKitError):
    """Why a running job must end. Found as `event.signal.reason`, raised by `event.signal.raise_if_aborted()`."""


class DeadlineExceeded(JobAborted):
    """The handler's time is up."""


class LeaseLost(JobAborted):
    """The lease has lapsed or was taken, so another worker may run the job now."""


class ShuttingDown(JobAborted):
    """The worker stops; the job goes back to the queue and nothing is counted."""


class Cancelled(JobAborted):
    """`cancel_job` was called for this job."""


class HandlerVerdict(QueueKitError):
    """Raised by a handler to say how its run ends; never seen by the caller of a worker."""


class Snooze(HandlerVerdict):
    """Run this job again in `seconds` (a number or a timedelta). No retry is counted, the session is rolled back.

    >>> raise Snooze(60)  # doctest: +SKIP
    """

    def __init__(self, seconds: float | timedelta) -> None:
        self.seconds: float = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
        if not 0 <= self.seconds <= _LONGEST_SNOOZE:
            raise ValueError(f"Snooze takes seconds from 0 to {_LONGEST_SNOOZE:g} (a hundred years), not {seconds!r}")
        super().__init__(f"run again in {self.seconds:g} s")


class Discard(HandlerVerdict):
    """Fail this job now, without further tries. The session is rolled back and `reason` is kept with the job."""

    def __init__(self, reason: str = "discarded by its handler") -> None:
        super().__init__(reason)
        self.reason = reason
