"""`run_handler`: one handler, without a queue, on data that has travelled."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_validator
from sqlalchemy.ext.asyncio import create_async_engine

from queue_kit import (
    ConfigurationError,
    DeadlineExceeded,
    Discard,
    Event,
    Handler,
    Handlers,
    InvalidJob,
    InvalidPayload,
    Job,
    Snooze,
    in_thread,
)
from queue_kit.testing import _handler, run_handler


@dataclass
class Visit:
    at: datetime
    pages: tuple[int, ...] = ()


async def test_data_travels_as_through_the_database():
    seen = []

    async def handler(event: Event, session: Any, job: Job[Visit]) -> None:
        seen.append(job)
        with event.span("part"):
            assert event.signal.deadline is not None

    given = Visit(datetime(2030, 1, 1, tzinfo=UTC), (1, 2))
    await run_handler(handler, given, job_id=7, retry_count=2, scheduled_at=given.at)
    (job,) = seen
    assert job.data == given
    assert job.data is not given
    assert (job.id, job.attempt, job.scheduled_at) == (7, 3, given.at)


async def test_plain_data_is_copied_and_defaults_to_an_object():
    seen = []

    async def handler(event: Event, session: Any, job: Job) -> None:
        seen.append(job.data)

    given = {"numbers": [1]}
    await run_handler(handler, given)
    await run_handler(handler)
    assert seen == [given, {}]
    assert seen[0]["numbers"] is not given["numbers"]


async def test_a_registered_handler_has_its_name():
    jobs = Handlers()

    @jobs.handler("named")
    async def named(event: Event, session: Any, job: Job) -> None:
        raise Discard(job.name)

    with pytest.raises(Discard, match="named"):
        await run_handler(named)


@pytest.mark.parametrize("error", [Snooze(5), Discard("why"), ValueError("no"), KeyboardInterrupt()])
async def test_what_a_handler_raises_is_raised(error):
    async def handler(event: Event, session: Any, job: Job) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await run_handler(handler)
    assert caught.value is error


class Fussy(BaseModel):
    """What reads back otherwise than it was written."""

    number: int

    @field_validator("number")
    @classmethod
    def positive(cls, number: int) -> int:
        if number < 1:
            raise ValueError("must be positive")
        return number


async def test_data_that_production_would_refuse_is_refused():
    async def handler(event: Event, session: Any, job: Job[Fussy]) -> None:
        raise AssertionError("it must not run")

    async def plain(event: Event, session: Any, job: Job) -> None:
        raise AssertionError("it must not run")

    with pytest.raises(InvalidJob, match="positive"):
        await run_handler(handler, {"number": 0})  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match="datetime is not JSON"):
        await run_handler(plain, {"at": datetime.now(UTC)})
    with pytest.raises(InvalidJob, match="has no time zone"):
        await run_handler(plain, scheduled_at=datetime(2030, 1, 1))  # noqa: DTZ001


async def test_data_is_checked_again_as_at_a_claim():
    async def handler(event: Event, session: Any, job: Job[Fussy]) -> None:
        raise AssertionError("it must not run")

    handling = Handler(handler)
    handling.payload.encode = lambda _value: {"number": 0}  # type: ignore[method-assign]
    with pytest.raises(InvalidPayload, match="positive"):
        await run_handler(handling, Fussy(number=1))


async def test_the_session_is_the_one_given():
    async def handler(event: Event, session: Any, job: Job) -> None:
        session.append(job.id)

    given: Any = []
    await run_handler(handler, session=given)
    assert given == [1]
    with pytest.raises(ConfigurationError, match=r"uses its session \(append\): give run_handler"):
        await run_handler(handler)


async def test_the_timeout_is_enforced():
    async def handler(event: Event, session: Any, job: Job) -> None:
        await asyncio.sleep(60)

    with pytest.raises(DeadlineExceeded):
        await run_handler(Handler(handler, timeout=timedelta(milliseconds=10)))


async def test_a_handler_that_refuses_to_end_fails_the_test(monkeypatch):
    release = asyncio.Event()

    async def handler(event: Event, session: Any, job: Job) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    monkeypatch.setattr(_handler, "CANCEL_GRACE", 0.02)
    with pytest.raises(AssertionError, match=r"'queue_kit\.testing' did not end 0\.02 s after"):
        await run_handler(Handler(handler, timeout=0.01))
    release.set()


async def test_an_engine_is_no_session():
    async def handler(event: Event, session: Any, job: Job) -> None: ...

    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(TypeError, match="not an AsyncEngine"):
        await run_handler(handler, session=engine)  # type: ignore[arg-type]
    await engine.dispose()


async def test_blocking_handlers_run_too():
    seen = []

    def work(event: Event, job: Job) -> None:
        seen.append(job.data)

    await run_handler(in_thread(work), {"a": 1})
    assert seen == [{"a": 1}]
