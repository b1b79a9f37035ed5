"""Running one handler by itself, with what it would get from a worker."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from queue_kit._deadlines import Deadlines
from queue_kit._handler import Handler, HandlerFunction
from queue_kit._run import Limits, Run
from queue_kit.errors import ConfigurationError
from queue_kit.handlers import NamedHandler
from queue_kit.job import Claimed, Job, NewJob

T = TypeVar("T")

TIMEOUT = 30.0
"""Seconds, as those of a worker, for a handler that sets none."""

CANCEL_GRACE = 5.0
"""Seconds, as those of a worker, that a cancelled handler may take to end."""


async def run_handler(
    handler: HandlerFunction[T],
    data: T | None = None,
    *,
    session: AsyncSession | None = None,
    job_id: int = 1,
    retry_count: int = 0,
    scheduled_at: datetime | None = None,
) -> None:
    """Run a handler once, without a queue, on a payload that has travelled as through the database: checked, made JSON,
    read again, and checked again. What the handler raises (`Snooze` and `Discard`, too) is raised here.

    `handler` is a registered one, a `Handler`, or an async function of `(event, session, job)`. `session` is what it
    gets: nothing is committed, rolled back or fenced for it. The other arguments are the job's. The handler's timeout
    is enforced. Raises `InvalidJob` and `InvalidPayload` for a payload that is refused before it runs,
    `DeadlineExceeded` at the timeout, `AssertionError` for a handler that refuses to end then, and `ConfigurationError`
    when the handler uses a session and none was given.

    >>> async def test_unknown_address():
    ...     with pytest.raises(Discard):
    ...         await run_handler(send_email, Email(to="nobody"))
    """
    if isinstance(session, AsyncEngine | AsyncConnection):
        raise TypeError(f"session is the AsyncSession that the handler gets, not an {type(session).__name__}")
    known = handler if isinstance(handler, Handler) else Handler(handler)
    name = known.name if isinstance(known, NamedHandler) else "queue_kit.testing"
    new = NewJob(name, data, scheduled_at=scheduled_at, encode=known.payload.encode)
    stored = json.loads(json.dumps(new.payload))
    known.payload.decode(stored)
    now = datetime.now(UTC)
    job = Job(job_id, name, stored, new.priority, new.scheduled_at or now, now, retry_count)
    limits = Limits(
        timeout=TIMEOUT if known.timeout is None else known.timeout,
        max_retry_count=1,
        retry_delay=0.0,
        cancel_grace=CANCEL_GRACE,
    )
    run = Run(Claimed(job, claim_no=1), limits, Deadlines())
    await run.execute(known, _NoSession() if session is None else session)
    if run.wedged:
        raise refuses_to_end(name)
    if run.token.reason is not None:
        raise run.token.reason
    assert run.task is not None
    error = asyncio.CancelledError() if run.task.cancelled() else run.task.result()
    if error is not None:
        raise error


class _NoSession:
    def __getattr__(self, name: str) -> Any:
        raise ConfigurationError(f"the handler uses its session ({name}): give run_handler(..., session=...)")


def refuses_to_end(name: str) -> AssertionError:
    """What a test fails with whose handler swallows its cancellation."""
    return AssertionError(f"the handler of {name!r} did not end {CANCEL_GRACE:g} s after it was cancelled")
