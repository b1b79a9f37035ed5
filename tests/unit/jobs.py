"""Jobs as a claim brings them, and one run of a handler with such a job: no database is needed."""

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any

from queue_kit import Job
from queue_kit._deadlines import Deadlines
from queue_kit._handler import Handler
from queue_kit._run import Limits, Run
from queue_kit.job import Claimed, Outcome
from tests.support import PATIENCE

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def claimed(
    number: int = 7, *, data: Any = None, priority: int = 5, due: float = 0.0, retry_count: int = 0, **fields: Any
) -> Claimed:
    """A job, due so many seconds after `NOW`; `fields` are those that the worker alone knows."""
    at = NOW + timedelta(seconds=due)
    job = Job(number, "test.job", {} if data is None else data, priority, at, NOW, retry_count=retry_count)
    return Claimed(job, claim_no=1, due=at, **fields)


def limits(*, timeout: float = math.inf, tries: int = 2, retry_delay: Any = 10.0, cancel_grace: float = 60.0) -> Limits:
    return Limits(timeout, tries, retry_delay, cancel_grace)


async def outcome_of(function: Any, given: Claimed | None = None, **bounds: Any) -> Outcome:
    """How a run of a handler ends; `bounds` are those of `limits`."""
    run = Run(given or claimed(), limits(**bounds), Deadlines())
    return await asyncio.wait_for(run.execute(Handler(function), None), PATIENCE)
