"""One run without a database: how it ends, what it leaves of an error, and that nothing a handler does breaks it."""

import asyncio
import contextvars
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from queue_kit import Cancelled, DeadlineExceeded, Discard, Job, LeaseLost, ShuttingDown, Snooze
from queue_kit._deadlines import Deadlines
from queue_kit._error_record import MAX_MESSAGE, MAX_TRACEBACK
from queue_kit._handler import Handler
from queue_kit._run import Run, without_running
from queue_kit.job import Outcome, Verdict
from tests.support import PATIENCE
from tests.unit.jobs import claimed, limits, outcome_of

REASONS = {
    DeadlineExceeded: Verdict.retried,
    LeaseLost: Verdict.released,
    ShuttingDown: Verdict.released,
    Cancelled: Verdict.cancelled,
}


def raising(error: BaseException) -> Any:
    async def handler(event, session, job):
        raise error

    return handler


async def overflow(event, session, job):
    await overflow(event, session, job)


class Waiting:
    """A handler that waits to be cancelled and then does as it is told."""

    def __init__(self, answer: BaseException | None = None, *, swallow: bool = True) -> None:
        self.answer, self.swallow = answer, swallow
        self.began, self.cancelled = asyncio.Event(), 0

    async def __call__(self, event, session, job):
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.answer is not None:
                raise self.answer from None
            if not self.swallow:
                raise


# --- how a run ends ---------------------------------------------------------------------------------------------------


async def test_a_handler_that_returns_completes_its_job_whatever_it_returns():
    async def handler(event, session, job):
        return ValueError("a value, not a failure")

    assert await outcome_of(handler) == Outcome(Verdict.completed)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("no"), "ValueError"),
        (TimeoutError("its own"), "TimeoutError"),
        (asyncio.CancelledError(), "CancelledError"),
        (SystemExit(3), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (StopAsyncIteration(), "StopAsyncIteration"),
        (StopIteration(), "RuntimeError"),
        (ExceptionGroup("both", [ValueError("a"), Snooze(1)]), "ExceptionGroup"),
        (BaseExceptionGroup("both", [KeyboardInterrupt(), SystemExit()]), "BaseExceptionGroup"),
        (MemoryError(), "MemoryError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_whatever_a_handler_raises_is_a_failed_try(error, name):
    outcome = await outcome_of(raising(error))
    assert (outcome.verdict, outcome.delay, outcome.error["class"]) == (Verdict.retried, 10.0, name)


async def test_endless_recursion_is_a_failed_try():
    outcome = await outcome_of(overflow)
    assert (outcome.verdict, outcome.error["class"]) == (Verdict.retried, "RecursionError")


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason.__name__)
async def test_an_abort_reason_raised_without_an_abort_is_a_failed_try(reason):
    # Such as that of an earlier job, through an event that the handler has kept.
    outcome = await outcome_of(raising(reason("not of this run")))
    assert (outcome.verdict, outcome.error["class"]) == (Verdict.retried, reason.__name__)


@pytest.mark.parametrize(
    ("retry_count", "lost", "tries", "verdict"),
    [
        (0, 0, 1, Verdict.failed),
        (0, 0, 2, Verdict.retried),
        (1, 0, 2, Verdict.failed),
        (1, 0, 3, Verdict.retried),
        (0, 1, 2, Verdict.retried),
        (0, 2, 2, Verdict.failed),
        (1, 2, 4, Verdict.retried),
        (1, 3, 4, Verdict.failed),
    ],
)
async def test_tries_are_counted_in_total_and_the_first_lapsed_lease_is_free(retry_count, lost, tries, verdict):
    given = claimed(retry_count=retry_count, lost=lost)
    assert without_running(given, limits(tries=tries)) is None
    outcome = await outcome_of(raising(ValueError("no")), given, tries=tries)
    assert (outcome.verdict, outcome.error["try"]) == (verdict, retry_count + 1)


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        (claimed(lost=3), Verdict.failed, "lease lost 3 times"),
        (claimed(retry_count=2), Verdict.failed, "lease lost 0 times"),
        (claimed(unreadable="data: not JSON"), Verdict.failed, "the row cannot be read: data: not JSON"),
        (claimed(cancel_requested=True), Verdict.cancelled, None),
        (claimed(cancel_requested=True, unreadable="data: not JSON"), Verdict.cancelled, None),
    ],
)
def test_what_must_not_run_ends_without_running(given, verdict, reason):
    outcome = without_running(given, limits(tries=2))
    assert outcome.verdict is verdict
    assert outcome.error is None if reason is None else reason in outcome.error["reason"]


@pytest.mark.parametrize("seconds", [0, 12.5, timedelta(minutes=1)])
async def test_a_snooze_counts_nothing_even_in_the_last_try(seconds):
    outcome = await outcome_of(raising(Snooze(seconds)), claimed(retry_count=1))
    wanted = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    assert outcome == Outcome(Verdict.snoozed, delay=wanted)


async def test_a_discard_fails_at_once_with_its_reason():
    outcome = await outcome_of(raising(Discard("nobody wants it")), tries=50)
    assert (outcome.verdict, outcome.error["reason"]) == (Verdict.failed, "nobody wants it")


# --- abort ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reason", "verdict"), REASONS.items(), ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize(
    "answer", [None, ValueError("cleaning up failed"), Snooze(1), Discard("no"), asyncio.CancelledError()], ids=repr
)
async def test_the_abort_reason_decides_whatever_the_handler_makes_of_it(reason, verdict, answer):
    run, handler = Run(claimed(), limits(), Deadlines()), Waiting(answer)
    execution = asyncio.create_task(run.execute(Handler(handler), None))
    await handler.began.wait()
    run.abort(reason("now"))
    run.abort(LeaseLost("too late to matter"))
    outcome = await asyncio.wait_for(execution, PATIENCE)
    assert outcome.verdict is verdict
    assert type(run.token.reason) is reason
    assert handler.cancelled == 1
    assert (outcome.error or {}).get("class") == ("DeadlineExceeded" if reason is DeadlineExceeded else None)
    assert run.event.spans.aborted is not None


async def test_between_token_and_cancellation_whoever_runs_it_has_a_moment():
    order = []

    async def before_cancel():
        order.append((run.token.aborted, handler.cancelled))
        await asyncio.sleep(0.01)
        order.append((run.token.aborted, handler.cancelled))

    run, handler = Run(claimed(), limits(timeout=0.01), Deadlines()), Waiting(swallow=False)
    outcome = await asyncio.wait_for(run.execute(Handler(handler), None, before_cancel=before_cancel), PATIENCE)
    assert (outcome.verdict, outcome.error["class"]) == (Verdict.retried, "DeadlineExceeded")
    assert order == [(True, 0), (True, 0)]
    assert handler.cancelled == 1


async def test_a_job_aborted_before_it_began_is_not_called():
    run, handler = Run(claimed(), limits(), Deadlines()), Waiting()
    run.abort(ShuttingDown("the worker stops"))
    assert (await asyncio.wait_for(run.execute(Handler(handler), None), PATIENCE)).verdict is Verdict.released
    assert not handler.began.is_set()


async def test_an_abort_after_the_end_changes_nothing():
    run = Run(claimed(), limits(), Deadlines())

    async def handler(event, session, job): ...

    assert (await run.execute(Handler(handler), None)).verdict is Verdict.completed
    run.abort(LeaseLost("late"))
    assert not run.token.aborted


async def test_a_handler_that_goes_on_is_left_after_its_grace():
    run, let_go = Run(claimed(), limits(timeout=0.01, cancel_grace=0.01), Deadlines()), asyncio.Event()

    async def refusing(event, session, job):
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    outcome = await asyncio.wait_for(run.execute(Handler(refusing), None), PATIENCE)
    assert (outcome.verdict, outcome.error["class"], run.wedged) == (Verdict.retried, "DeadlineExceeded", True)
    assert run.event.spans.duration is not None
    let_go.set()
    await asyncio.wait_for(run.task, PATIENCE)
    assert not run.wedged


@pytest.mark.parametrize(("own", "ends"), [(0.01, "by itself"), (60.0, "at its deadline")])
async def test_a_timeout_of_the_handlers_own_is_told_from_the_runs(own, ends):
    heard = []

    async def handler(event, session, job):
        try:
            async with asyncio.timeout(own):
                await asyncio.Event().wait()
        except BaseException as error:
            heard.append(type(error))
            raise

    outcome = await outcome_of(handler, timeout=60.0 if ends == "by itself" else 0.01)
    expected = {
        "by itself": (TimeoutError, "TimeoutError"),
        "at its deadline": (asyncio.CancelledError, "DeadlineExceeded"),
    }
    assert (heard[0], outcome.error["class"]) == expected[ends]


async def test_a_run_without_a_limit_has_no_deadline():
    seen = []

    async def handler(event, session, job):
        seen.append(event.signal.deadline)

    await outcome_of(handler, timeout=math.inf)
    await outcome_of(handler, timeout=500)
    assert seen[0] is None
    assert 400 < seen[1] <= 500


async def test_context_variables_of_a_run_stay_in_it():
    tenant = contextvars.ContextVar("tenant", default="nobody")
    tenant.set("host")
    seen = []

    async def handler(event, session, job):
        seen.append(tenant.get())
        tenant.set("job")

    await outcome_of(handler)
    await outcome_of(handler)
    assert [*seen, tenant.get()] == ["host", "host", "host"]


# --- payloads ---------------------------------------------------------------------------------------------------------


@dataclass
class Email:
    to: str


class Odd(BaseModel):
    to: str

    @field_validator("to")
    @classmethod
    def look(cls, to):
        return {"a@b.c": to}[to]  # a KeyError, which pydantic lets through


async def test_a_payload_that_does_not_fit_fails_at_once_without_a_call():
    called = []

    async def handler(event, session, job: Job[Email]):
        called.append(job.data)

    assert (await outcome_of(handler, claimed(data={"to": "a@b.c"}), tries=50)).verdict is Verdict.completed
    outcome = await outcome_of(handler, claimed(data={"too": "a@b.c"}), tries=50)
    assert (outcome.verdict, outcome.error["class"]) == (Verdict.failed, "InvalidPayload")
    assert called == [Email("a@b.c")]


async def test_a_payload_type_whose_own_code_fails_is_a_failure_of_the_job():
    called = []

    async def handler(event, session, job: Job[Odd]):
        called.append(job.data)

    outcome = await outcome_of(handler, claimed(data={"to": "nobody"}), tries=1)
    assert (outcome.verdict, outcome.error["class"]) == (Verdict.failed, "InvalidPayload")
    assert called == []


# --- error records ----------------------------------------------------------------------------------------------------


def unprintable(error: BaseException) -> type[Exception]:
    class Unprintable(Exception):
        def __str__(self):
            raise error

    return Unprintable


class NoText(Exception):
    def __str__(self):
        return 7  # noqa: PLE0307


class Long(Exception):
    pass


Long.__qualname__ = "Long" * 5_000


ERRORS = {
    "plain": (ValueError("plain"), "plain"),
    "nul": (ValueError("a\x00b"), r"a\x00b"),
    "surrogate": (ValueError("a\ud800b"), r"a\ud800b"),
    "nuls": (ValueError("\x00" * MAX_MESSAGE), r"\x00"),
    "surrogates": (ValueError("\udfff" * MAX_MESSAGE), r"\udfff"),
    "text that raises": (unprintable(ValueError("no text"))(), "ValueError"),
    "text without end": (unprintable(RecursionError())(), "RecursionError"),
    "text that cancels": (unprintable(asyncio.CancelledError())(), "CancelledError"),
    "text that is none": (NoText(), "TypeError"),
    "long name": (Long("a name without end"), "a name without end"),
    "group": (ExceptionGroup("group", [ValueError("x" * 20_000)] * 20), "group"),
}


@pytest.mark.parametrize(("error", "kept"), ERRORS.values(), ids=ERRORS.keys())
async def test_i4_any_error_leaves_a_record_that_can_be_stored_and_is_bounded(error, kept):
    record = (await outcome_of(raising(error))).error
    assert kept in record["message"]
    check_storable(record)


async def test_i4_a_message_of_50_mb_keeps_its_head_and_its_tail():
    record = (await outcome_of(raising(ValueError("head" + "x" * 50_000_000 + "tail")))).error
    assert (record["message"][:4], record["message"][-4:]) == ("head", "tail")
    assert record["traceback"].startswith("Traceback")
    check_storable(record)


async def test_a_reason_without_end_is_cut_as_well():
    record = (await outcome_of(raising(Discard("\x00" * 100_000)))).error
    assert record["reason"].startswith(r"\x00")
    check_storable(record)


def check_storable(record: Any) -> None:
    bounds = {"class": MAX_MESSAGE, "message": MAX_MESSAGE, "reason": MAX_MESSAGE, "traceback": MAX_TRACEBACK}
    lengths = {field: len(record[field]) for field in bounds if field in record}
    assert {field: length for field, length in lengths.items() if length > bounds[field]} == {}
    assert "\x00" not in "".join(map(str, record.values()))
    json.dumps(record, ensure_ascii=False).encode()


async def test_a_record_tells_when_and_in_which_try_and_where():
    async def handler(event, session, job):
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    before = datetime.now(UTC)
    record = (await outcome_of(handler, claimed(retry_count=3), tries=9)).error
    assert (record["class"], record["message"], record["try"]) == ("ValueError", "second", 4)
    assert before <= datetime.fromisoformat(record["at"]) <= datetime.now(UTC)
    for part in ("KeyError: 'first'", "The above exception was the direct cause", "in handler", "test_run.py"):
        assert part in record["traceback"]


# --- retry delays -----------------------------------------------------------------------------------------------------


def broken(attempt):
    raise LookupError(attempt)


def ending(attempt):
    raise asyncio.CancelledError(attempt)


@pytest.mark.parametrize("policy", [broken, ending, lambda _: "soon", lambda _: None])
async def test_a_retry_delay_that_fails_is_named_in_the_log_and_waits_a_second(policy, caplog):
    outcome = await outcome_of(raising(ValueError("no")), retry_delay=policy)
    assert (outcome.verdict, outcome.delay, outcome.error["class"]) == (Verdict.retried, 1.0, "ValueError")
    assert "retry_delay of job test.job failed" in caplog.text


@pytest.mark.parametrize(("policy", "delay"), [(lambda attempt: attempt * 10, 30), (lambda _: math.inf, 365 * 86_400)])
async def test_a_retry_delay_is_that_of_the_try_within_what_can_be_stored(policy, delay):
    outcome = await outcome_of(raising(ValueError("no")), claimed(retry_count=2), tries=9, retry_delay=policy)
    assert (outcome.verdict, outcome.delay) == (Verdict.retried, delay)
