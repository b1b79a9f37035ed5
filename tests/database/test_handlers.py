"""Handlers: what can be registered, and what a handler is given when its job runs."""

import functools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import TypedDict  # on Python 3.11 pydantic takes no other

from queue_kit import (
    ConfigurationError,
    CronJob,
    Event,
    Handler,
    Handlers,
    InvalidJob,
    Job,
    JobState,
    NewJob,
    QueueWorker,
    add_job,
    add_jobs,
    in_thread,
    register_cron_jobs,
    sqlite_engine,
)
from tests.database.clock import database_now, far, make_due, rows
from tests.database.running import nothing
from tests.support import Recorder, change, row_of

if TYPE_CHECKING:
    from somewhere import Unknown


async def other(event, session, job):
    """Another that completes at once."""


# --- registration -----------------------------------------------------------------------------------------------------


def sync_function(event, session, job): ...


async def two_parameters(event, job): ...


async def four_parameters(event, session, job, more): ...


async def keyword_only(event, session, *, job): ...


async def any_parameters(*args): ...


async def needs_a_keyword(event, session, job, *, more): ...


async def ok(event, session, job): ...


async def payload_for_job(event, session, job: dict): ...


async def job_first(job: Job, session, event: Event): ...


async def event_second(session: AsyncSession, event: Event, job): ...


def returns_the_handler(): ...


async def generator(event, session, job):
    yield


class GeneratorCallable:
    async def __call__(self, event, session, job):
        yield


class SyncCallable:
    def __call__(self, event, session, job): ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (sync_function, r"in_thread\(sync_function\).*in_process\(sync_function\)"),
        (lambda event, session, job: None, "async"),
        (SyncCallable(), "async"),
        (generator, "^generator has a `yield`"),
        (GeneratorCallable(), "has a `yield`"),
        (two_parameters, "three positional parameters"),
        (four_parameters, "three positional parameters"),
        (keyword_only, "three positional parameters"),
        (any_parameters, "three positional parameters"),
        (needs_a_keyword, "three positional parameters"),
        (payload_for_job, r"annotate it as Job\[\.\.\.\].*not as dict"),
        (job_first, r"the order is \(event, session, job\)"),
        (event_second, r"the second parameter of event_second is the session; the order is"),
        (returns_the_handler, r"if it returns the handler, call it: returns_the_handler\(\)"),
        (Handlers().add("other", ok), "<handler 'other'> is a handler already"),
        (None, "async function, not NoneType"),
        ("text", "async function, not str"),
    ],
)
def test_a_function_that_could_not_run_is_refused(jobs, function, problem):
    with pytest.raises(ConfigurationError, match=problem):
        jobs.handler("a")(function)
    with pytest.raises(ConfigurationError, match=problem):
        jobs.add("a", function)
    with pytest.raises(ConfigurationError, match=problem):
        Handler(function)
    assert dict(jobs) == {}


def test_a_decorator_without_a_name_is_refused(jobs):
    with pytest.raises(ConfigurationError, match=r'@jobs.handler\("email.send"\)'):
        jobs.handler(ok)
    assert dict(jobs) == {}


@pytest.mark.parametrize("name", ["", " ", "x" * 201, None, 7, "a\x00"])
def test_a_name_that_no_job_may_have_is_refused(jobs, name):
    with pytest.raises(ConfigurationError, match="name"):
        jobs.add(name, nothing)
    assert len(jobs) == 0


@pytest.mark.parametrize(
    "limits",
    [
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": "30"},
        {"max_retry_count": 0},
        {"max_retry_count": 1.5},
        {"retry_delay": -1},
        {"retry_delay": "soon"},
        {"retry_delay": float("inf")},
    ],
    ids=str,
)
def test_limits_that_mean_nothing_are_refused(jobs, limits):
    (word,) = limits
    with pytest.raises(ConfigurationError, match=word):
        jobs.add("a", nothing, **limits)
    assert len(jobs) == 0


def test_a_name_is_registered_once(jobs):
    first = jobs.add("a", nothing)
    with pytest.raises(ConfigurationError, match="'a' is already registered"):
        jobs.add("a", other)
    with pytest.raises(ConfigurationError, match="'a' is already registered"):
        jobs.handler("a")(other)
    assert jobs["a"] is first


class Unreadable:
    def __init__(self, connection: object) -> None: ...


async def takes_unreadable(event, session, job: Job[Unreadable]): ...


async def takes_unknown(event, session, job: "Job[Unknown]"): ...


@pytest.mark.parametrize(
    ("function", "problem"),
    [(takes_unreadable, "Unreadable cannot be read"), (takes_unknown, "cannot be resolved.*module level")],
)
def test_a_payload_type_that_cannot_be_read_is_refused(jobs, function, problem):
    with pytest.raises(ConfigurationError, match=problem):
        jobs.add("a", function)


async def takes_positive_text(event, session, job: "Job[Annotated[int, Field(gt=0)]]"): ...
async def takes_quoted(event, session, job: Job["Quoted"]): ...


@dataclass
class Quoted:
    total: Annotated[int, Field(gt=0)]


@pytest.mark.parametrize(
    ("function", "right", "wrong"), [(takes_positive_text, 1, -1), (takes_quoted, Quoted(1), Quoted(-1))]
)
def test_a_payload_type_that_is_written_as_text_is_read_whole(jobs, function, right, wrong):
    handler = jobs.add("a", function)
    assert handler.payload.decode(handler.new(right).payload) == right
    with pytest.raises(InvalidJob, match="greater than 0"):
        handler.new(wrong)


def test_a_payload_type_is_read_though_its_function_uses_what_is_made_later(jobs):
    @dataclass
    class Local:
        size: int

    async def work(event, session, job: "Job[Local]"):
        assert Local
        await later()

    def wait(event, job: "Job[Local]"):
        assert Local
        later()

    for name, function in (("work", work), ("wait", in_thread(wait))):
        assert jobs.add(name, function).payload.decode({"size": 3}) == Local(3)
    later = None


def test_include_takes_over_all_handlers_of_a_module(jobs):
    module = Handlers()
    module.add("module.a", nothing)
    module.add("module.b", other)
    jobs.add("own", nothing)
    jobs.include(module)
    assert list(jobs) == ["own", "module.a", "module.b"]
    assert jobs["module.b"] is module["module.b"]


def test_include_takes_none_when_a_name_is_taken(jobs):
    module = Handlers()
    module.add("fresh", nothing)
    module.add("taken", nothing)
    mine = jobs.add("taken", other)
    with pytest.raises(ConfigurationError, match="already registered: taken"):
        jobs.include(module)
    assert dict(jobs) == {"taken": mine}


@pytest.mark.parametrize("wrong", [[nothing], nothing, None, {"": nothing}, {"a": sync_function}, {"a": None}])
def test_a_worker_refuses_what_is_no_mapping_of_names_to_handlers(sqlite_path, wrong):
    with pytest.raises(ConfigurationError):
        QueueWorker(sqlite_engine(sqlite_path), wrong)


async def test_a_handler_is_still_an_ordinary_function(jobs):
    @jobs.handler("double")
    async def double(event, session, job):
        """Doubles."""
        return job.data["n"] * 2

    now = datetime(2030, 1, 1, tzinfo=UTC)
    job = Job(id=1, name="double", data={"n": 21}, priority=5, scheduled_at=now, created_at=now)
    assert await double(Event(), None, job) == 42
    assert (double.name, double.__name__, double.__doc__) == ("double", "double", "Doubles.")


# --- what runs --------------------------------------------------------------------------------------------------------


async def test_a_plain_mapping_of_functions_and_handlers_runs(engine):
    seen = []

    async def plain(event, session, job):
        seen.append(("plain", job.data))

    async def limited(event, session, job):
        seen.append(("limited", event.signal.deadline))
        raise ValueError

    class Callable:
        async def __call__(self, event, session, job):
            seen.append(("callable", job.name))

        async def method(self, event, session, job):
            seen.append(("method", job.name))

    async def bound(extra, event, session, job):
        seen.append(("partial", extra))

    handlers = {
        "plain": plain,
        "limited": Handler(limited, timeout=1_000, max_retry_count=1),
        "callable": Callable(),
        "method": Callable().method,
        "partial": functools.partial(bound, "extra"),
    }
    await add_jobs(engine, [NewJob(name, {"x": 1}) for name in handlers])
    counts = await QueueWorker(engine, handlers).drain()
    assert (counts["completed"], counts["failed"]) == (4, 1)
    assert seen[0] == ("plain", {"x": 1})
    assert 900 < seen[1][1] <= 1_000
    assert seen[2:] == [("callable", "callable"), ("method", "method"), ("partial", "extra")]


async def test_handlers_of_included_modules_run(engine, jobs):
    seen = []
    module = Handlers()

    @module.handler("module.a", max_retry_count=1)
    async def a(event, session, job):
        seen.append(job.name)

    jobs.include(module)
    await a.add(engine)
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    assert seen == ["module.a"]


async def test_a_handler_is_given_an_event_a_session_and_its_job(engine, jobs):
    given = []

    @jobs.handler("a", retry_delay=0)
    async def a(event, session, job):
        given.append((event, session, job))
        if job.attempt == 1:
            raise ValueError

    before = await database_now(engine)
    job_id = await add_job(engine, "a", {"x": [1]}, priority=3, handler_timeout=20, max_retry_count=4)
    await QueueWorker(engine, jobs).drain()
    (event, session, job), (_, _, again) = given
    assert isinstance(event, Event)
    assert isinstance(session, AsyncSession)
    assert isinstance(job, Job)
    row = await row_of(engine, job_id)
    assert (job.id, job.name, job.data, job.priority, job.handler_timeout) == (job_id, "a", {"x": [1]}, 3, 20.0)
    assert (job.retry_count, job.attempt, again.retry_count, again.attempt) == (0, 1, 1, 2)
    assert job.created_at == again.created_at == row.created_at
    assert before <= job.scheduled_at <= again.scheduled_at
    assert {at.utcoffset() for at in (job.scheduled_at, job.created_at)} == {timedelta(0)}
    assert (job.cron_expression, job.cron_last_completed_at) == (None, None)
    with pytest.raises(AttributeError):
        job.priority = 1


async def test_a_cron_jobs_handler_is_given_its_entry_as_well(engine, jobs):
    given = []

    @jobs.handler("tick")
    async def tick(event, session, job: Job[Email]):
        given.append(job)

    await register_cron_jobs(engine, [CronJob("tick", far(), data={"to": "a@b.c"}, handler_timeout=7)])
    _, due = await make_due(engine, "tick")
    await QueueWorker(engine, jobs).drain()
    (job,) = given
    assert (job.cron_expression, job.scheduled_at, job.cron_last_completed_at) == (far(), due, None)
    assert (job.data, job.handler_timeout, job.priority) == (Email("a@b.c"), 7.0, 4)


async def test_the_data_is_an_empty_object_by_default(engine, jobs):
    seen = []

    @jobs.handler("a")
    async def a(event, session, job):
        seen.append(job.data)

    await add_job(engine, "a")
    await a.add(engine)
    await QueueWorker(engine, jobs).drain()
    assert seen == [{}, {}]


# --- payloads ---------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    at: datetime
    tags: list[str] = field(default_factory=list)


@dataclass
class Email:
    to: str
    copies: int = 1
    parts: list[Part] = field(default_factory=list)


class Address(TypedDict):
    street: str
    number: int


class Order(BaseModel):
    id: UUID
    total: float = Field(ge=0)
    address: Address | None = None


async def takes_anything(event, session, job): ...
async def takes_job(event, session, job: Job): ...
async def takes_dict(event, session, job: Job[dict]): ...
async def takes_dict_of_any(event, session, job: Job[dict[str, Any]]): ...
async def takes_any(event, session, job: Job[Any]): ...
async def takes_dataclass(event, session, job: Job[Email]): ...
async def takes_text(event, session, job: "Job[Email]"): ...
async def takes_typed_dict(event, session, job: Job[Address]): ...
async def takes_model(event, session, job: Job[Order]): ...
async def takes_ids(event, session, job: Job[list[UUID]]): ...
async def takes_union(event, session, job: Job[Email | None]): ...
async def takes_number(event, session, job: Job[int]): ...


ORDER = UUID("01234567-89ab-cdef-0123-456789abcdef")
PAYLOADS = [
    (takes_anything, {"x": [1, None]}),
    (takes_job, {"x": {"y": "z"}}),
    (takes_dict, {"x": 1}),
    (takes_dict_of_any, {"x": 1.5}),
    (takes_any, [1, "two"]),
    (takes_dataclass, Email("a@b.c", parts=[Part(datetime(2030, 1, 1, 2, 3, tzinfo=UTC), ["x"])])),
    (takes_text, Email("a@b.c", copies=2)),
    (takes_typed_dict, Address(street="Kade", number=7)),
    (takes_model, Order(id=ORDER, total=1.5, address=Address(street="Kade", number=7))),
    (takes_ids, [ORDER, uuid4()]),
    (takes_union, Email("a@b.c")),
    (takes_number, 7),
]


async def test_payloads_of_every_type_come_back_as_they_were_added(engine, jobs):
    seen = {}
    added = []
    for function, value in PAYLOADS:
        # The annotation is read through functools.wraps as through any decorator.
        @functools.wraps(function)
        async def remember(event, session, job):
            seen[job.name] = job.data

        handler = jobs.add(function.__name__, remember)
        await handler.add(engine, value)
        added.append(handler.new(value))
    assert (await QueueWorker(engine, jobs).drain())["completed"] == len(PAYLOADS)
    expected = {function.__name__: value for function, value in PAYLOADS}
    assert seen == expected
    assert {name: type(data) for name, data in seen.items()} == {name: type(data) for name, data in expected.items()}
    seen.clear()
    await add_jobs(engine, added)
    await QueueWorker(engine, jobs).drain()
    assert seen == expected


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (takes_dict, []),
        (takes_dict, "text"),
        (takes_dataclass, Part(datetime(2030, 1, 1, tzinfo=UTC))),
        (takes_dataclass, {"copies": 1}),
        (takes_typed_dict, {"street": "Kade"}),
        (takes_model, {"id": "no uuid", "total": 1}),
        (takes_model, {"id": str(ORDER), "total": -1}),
        (takes_model, Order.model_construct(id="no uuid", total=1)),
        (takes_model, Order.model_construct(id=ORDER, total="much")),
        (takes_ids, ["no uuid"]),
        (takes_ids, str(ORDER)),
        (takes_number, "seven"),
    ],
)
def test_a_payload_of_another_type_is_refused_at_enqueue(jobs, function, wrong):
    handler = jobs.add("a", function)
    with pytest.raises(InvalidJob) as refused:
        handler.new(wrong)
    assert refused.value.field == "data"
    assert refused.value.path.startswith("$")


async def test_a_payload_that_no_longer_fits_fails_the_job_without_a_call(engine, jobs):
    called = []

    @jobs.handler("email", max_retry_count=5)
    async def email(event, session, job: Job[Email]):
        called.append(job)

    @jobs.handler("object", max_retry_count=5)
    async def object_(event, session, job):
        called.append(job)

    wrong = [("email", {"to": {"secret": 1}}), ("email", {"copies": 1}), ("email", [1]), ("object", [1])]
    ids = [await add_job(engine, name, data) for name, data in wrong]
    changed = await email.add(engine, Email("a@b.c"))
    await change(engine, changed, data={"to": "a@b.c", "copies": "many"})
    fine = await email.add(engine, Email("a@b.c"))
    recorder = Recorder()
    counts = await QueueWorker(engine, jobs, hooks=[recorder]).drain()
    assert (counts["failed"], counts["completed"], counts["retried"]) == (5, 1, 0)
    assert [job.id for job in called] == [fine]
    paths = ["$.to", "$.to", "$", "$", "$.copies"]
    for job_id, path in zip([*ids, changed], paths, strict=True):
        row = await row_of(engine, job_id)
        assert row.state is JobState.failed
        (error,) = row.errors
        assert (error["class"], error["reason"], error["try"]) == ("InvalidPayload", "the payload is invalid", 1)
        assert path in error["message"]
        assert "secret" not in error["message"]


async def test_i7_a_type_that_grew_a_default_still_reads_older_jobs(engine, jobs):
    seen = []

    @jobs.handler("email")
    async def email(event, session, job: Job[Email]):
        seen.append(job.data)

    await add_job(engine, "email", {"to": "a@b.c"})
    await QueueWorker(engine, jobs).drain()
    assert seen == [Email("a@b.c", 1, [])]
    assert [row.state for row in await rows(engine)] == [JobState.completed]
