# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The public API as an application uses it, for mypy and pyright to read. A line that ends in an `ignore` must stay an
error: both checkers complain about an ignore that is not needed."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, assert_type
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import delete, func, not_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import ASGIApp
from typing_extensions import TypedDict

from queue_kit import (
    CronJob,
    CronPlan,
    Discard,
    Enqueued,
    Event,
    Handler,
    Handlers,
    Insights,
    Job,
    JobAborted,
    JobRow,
    JobState,
    NamedHandler,
    NameInsights,
    NewJob,
    QueueWorker,
    Settled,
    Snooze,
    Span,
    Started,
    Verdict,
    WorkerState,
    add_job,
    add_jobs,
    cancel_job,
    engine_from_url,
    exponential,
    get_job,
    in_process,
    in_thread,
    insert_jobs,
    install_hooks,
    job_queue_cleanup,
    job_queue_insights,
    list_jobs,
    migrate,
    queue_insights,
    register_cron_jobs,
    retry_job,
    sqlite_engine,
)
from queue_kit.contrib.sessions import (
    LeakReport,
    SessionStore,
    SigningKey,
    TokenAges,
    TokenPair,
    session_jobs,
)
from queue_kit.contrib.sessions import Session as StoredSession
from queue_kit.contrib.sessions.cookies import SessionCookies, end_session, session_in, start_session
from queue_kit.contrib.sessions.fastapi import SessionBearer, load_session
from queue_kit.dashboard import Access, dashboard
from queue_kit.testing import assert_enqueued, drain, enqueued, move_clock, rolled_back, run_handler

# --- payloads and handlers --------------------------------------------------------------------------------------------


@dataclass
class Email:
    to: str
    subject: str = ""


class Thumbnail(TypedDict):
    file_id: int
    widths: list[int]


class Order(BaseModel):
    id: UUID
    placed_at: datetime


class Point(NamedTuple):
    x: float
    y: float


jobs = Handlers()


@jobs.handler("email.send", timeout=timedelta(seconds=30), max_retry_count=5, retry_delay=exponential(base=1, cap=3600))
async def send_email(event: Event, session: AsyncSession, job: Job[Email]) -> None:
    assert_type(job.data, Email)
    assert_type(job.data.to, str)
    assert_type(job.id, int)
    assert_type(job.attempt, int)
    assert_type(job.scheduled_at, datetime)
    assert_type(job.handler_timeout, float | None)
    assert_type(job.cron_last_completed_at, datetime | None)
    event.log.info("sending to %s", job.data.to, extra={"try": job.attempt})
    with event.span("email.render") as child:
        assert_type(child, Event)
        child.signal.raise_if_aborted()
    assert_type(event.spans, Span | None)
    assert_type(event.signal.aborted, bool)
    assert_type(event.signal.deadline, float | None)
    assert_type(event.signal.reason, JobAborted | None)
    assert_type(await event.signal.wait(), JobAborted)
    if job.retry_count:
        raise Snooze(timedelta(minutes=1))
    raise Discard("nobody is there")


@jobs.handler("thumbnail.make", timeout=0.5, retry_delay=timedelta(seconds=5))
async def make_thumbnail(event: Event, session: AsyncSession, job: Job[Thumbnail]) -> int:
    return assert_type(job.data["file_id"], int)  # what a handler returns is dropped


@jobs.handler("order.confirm", retry_delay=lambda attempt: 2.0 * attempt)
async def confirm_order(event: Event, session: AsyncSession, job: Job[Order]) -> None:
    assert_type(job.data.placed_at, datetime)


@jobs.handler("report.write", retry_delay=0)
async def write_report(event: Event, session: AsyncSession, job: Job[dict[str, Any]]) -> None:
    assert_type(job.data, dict[str, Any])


@jobs.handler("plain")
async def plain(_event: Event, _session: AsyncSession, job: Job) -> None:
    assert_type(job.data, dict[str, Any])  # without a type of its own, the payload is an object


@jobs.handler("path.draw")
async def draw_path(event: Event, session: AsyncSession, job: Job[list[Point]]) -> None:
    assert_type(job.data[0].x, float)


def render(event: Event, job: Job[Email]) -> None: ...


def crunch(data: Thumbnail) -> int:
    return data["file_id"]


blocking = jobs.add("email.render", in_thread(render, max_threads=2), timeout=60)
computing = jobs.add("thumbnail.crunch", in_process(crunch, max_processes=1), max_retry_count=1)
cleanup = jobs.add("queue_kit.queue.cleanup", job_queue_cleanup(queue_history_in_days=5, failed_history_in_days=30))
insights = jobs.add("queue_kit.queue.insights", job_queue_insights())

# Hovering over a handler shows its payload.
assert_type(send_email, NamedHandler[Email])
assert_type(make_thumbnail, NamedHandler[Thumbnail])
assert_type(confirm_order, NamedHandler[Order])
assert_type(write_report, NamedHandler[dict[str, Any]])
assert_type(plain, NamedHandler[dict[str, Any]])
assert_type(draw_path, NamedHandler[list[Point]])
assert_type(blocking, NamedHandler[Email])
assert_type(computing, NamedHandler[Thumbnail])
assert_type(cleanup, NamedHandler[dict[str, Any]])
assert_type(insights, NamedHandler[dict[str, Any]])

assert_type(send_email.name, str)
assert_type(send_email.timeout, float | None)
assert_type(send_email.max_retry_count, int | None)
assert_type(jobs["email.send"], Handler[Any])


async def call_a_handler(event: Event, session: AsyncSession, job: Job[Email], order: Job[Order]) -> None:
    """As a unit test does."""
    await send_email(event, session, job)
    await send_email(event, session, order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def refused_handlers() -> None:
    @jobs.handler("two.parameters")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async def two_parameters(event: Event, job: Job[Email]) -> None: ...

    @jobs.handler("not.async")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    def not_async(event: Event, session: AsyncSession, job: Job[Email]) -> None: ...

    @jobs.handler("bare.payload")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async def bare_payload(event: Event, session: AsyncSession, data: Email) -> None: ...

    jobs.add("blocking", render)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    in_process(render)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    in_thread(crunch)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    del two_parameters, not_async, bare_payload


# --- adding jobs ------------------------------------------------------------------------------------------------------


async def add_typed(session: AsyncSession, connection: AsyncConnection, engine: AsyncEngine, key: str | None) -> None:
    assert_type(await send_email.add(session, Email(to="a@b.c"), priority=1, delay=timedelta(hours=1)), int)
    assert_type(await send_email.add(connection, Email(to="a@b.c"), scheduled_at=datetime.now(UTC)), int)
    assert_type(await send_email.add(engine, Email(to="a@b.c"), unique_key=None), int)
    assert_type(await send_email.add(session, Email(to="a@b.c"), unique_key="welcome-7"), int | None)
    assert_type(await send_email.add(session, Email(to="a@b.c"), unique_key=key), int | None)
    assert_type(await make_thumbnail.add(session, {"file_id": 1, "widths": [10]}), int)
    assert_type(await write_report.add(session), int)
    assert_type(await draw_path.add(session, [Point(0, 1)]), int)
    assert_type(await blocking.add(session, Email(to="a@b.c")), int)
    assert_type(await computing.add(session, {"file_id": 1, "widths": []}, handler_timeout=5), int)

    assert_type(send_email.new(Email(to="a@b.c"), delay=60), NewJob[Email])
    assert_type(make_thumbnail.new({"file_id": 1, "widths": []}), NewJob[Thumbnail])


async def wrong_payloads(db: AsyncSession, url: str, order: Order) -> None:
    await send_email.add(db, {"to": "a@b.c"})  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await send_email.add(db, order)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await send_email.add(db, order, unique_key="k")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await make_thumbnail.add(db, {"file_id": "1", "widths": []})  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await make_thumbnail.add(db, {"file_id": 1})  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await confirm_order.add(db, Email(to="a@b.c"))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await draw_path.add(db, [(0.0, 1.0)])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await plain.add(db, ["no object"])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await blocking.add(db, order)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await computing.add(db, Email(to="a@b.c"))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    send_email.new(order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await send_email.add(url, Email(to="a@b.c"))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await send_email.add(db, Email(to="a@b.c"), 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def add_by_name(session: AsyncSession, connection: AsyncConnection, engine: AsyncEngine, key: str | None) -> None:
    assert_type(await add_job(session, "email.send", {"to": "a@b.c"}), int)
    assert_type(await add_job(connection, "tick", priority=1, delay=60, handler_timeout=float("inf")), int)
    assert_type(await add_job(engine, "tick", ["any", "JSON"], scheduled_at=datetime.now(UTC)), int)
    assert_type(await add_job(session, "tick", max_retry_count=1, unique_key=None), int)
    assert_type(await add_job(session, "tick", unique_key="order-7"), int | None)
    assert_type(await add_job(session, "tick", unique_key=key), int | None)

    new = NewJob("tick")
    assert_type(new, NewJob[dict[str, Any]])
    assert_type(NewJob("tick", [1, 2]).data, list[int])
    mixed = [new, NewJob("tick", {"n": 1}), send_email.new(Email(to="a@b.c"), unique_key="k")]
    assert_type(await add_jobs(session, mixed), list[int | None])
    assert_type(await add_jobs(session, [send_email.new(Email(to="a@b.c")) for _ in range(3)]), list[int | None])

    session.add(JobRow(name="email.send", data={"to": "a@b.c"}, priority=3))
    await session.execute(insert_jobs([new]))


def add_in_a_sync_session(session: Session) -> None:
    session.execute(insert_jobs([NewJob("reindex", {"table": "book"}), send_email.new(Email(to="a@b.c"))]))


async def wrong_arguments(db: AsyncSession) -> None:
    await add_job(db, 7)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await add_job(db, "tick", priority="high")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await add_job(db, "tick", delay="1h")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await add_jobs(db, ["tick"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    NewJob("tick").priority = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


# --- the worker, its hooks, cron --------------------------------------------------------------------------------------


class Metrics:
    """A hook has any of these methods."""

    def on_enqueue(self, new_job: NewJob[Any]) -> Mapping[str, Any] | None:
        return {"traceparent": new_job.name}

    def on_enqueued(self, record: Enqueued) -> None:
        assert_type(record.job_id, int)
        assert_type(record.new_job.unique_key, str | None)

    def on_started(self, record: Started) -> None:
        assert_type(record.worker_id, UUID)
        assert_type(record.job.name, str)
        assert_type(record.trace_context, Mapping[str, Any] | None)
        assert_type(record.due, datetime)

    def on_settled(self, record: Settled) -> None:
        assert_type(record.outcome.verdict, Verdict)
        assert_type(record.outcome.delay, float)
        assert_type(record.seconds, float)
        assert_type(record.spans, Span | None)

    def on_worker_state(self, record: WorkerState) -> None:
        assert_type(record.state, str)


class Renderer:
    """Anything that can be awaited with the three arguments is a handler."""

    async def __call__(self, event: Event, session: AsyncSession, job: Job[Email]) -> None: ...

    async def method(self, event: Event, session: AsyncSession, job: Job[Email]) -> None: ...


async def unregistered(event: Event, session: AsyncSession, job: Job[Email]) -> None: ...


class MySession(AsyncSession):
    """An application's own kind of session."""


def workers(engine: AsyncEngine) -> None:
    QueueWorker(engine, jobs)
    QueueWorker(
        engine,
        {
            "function": unregistered,
            "limited": Handler(unregistered, timeout=30, max_retry_count=1, retry_delay=1.5),
            "registered": send_email,
            "object": Renderer(),
            "method": Renderer().method,
            "thread": in_thread(render),
        },
        parallel_count=10,
        poll_interval=timedelta(seconds=1),
        handler_timeout=30,
        max_retry_count=2,
        retry_delay=exponential(),
        excluded_names=["limited"],
        unsafe_ignore_sorting=True,
        delete_job_on_completion=True,
        keep_failed=False,
        lease=30,
        grace=20.0,
        cancel_grace=5,
        prefetch=0,
        listen=create_async_engine("postgresql+asyncpg://direct/app"),
        session_factory=async_sessionmaker(engine, class_=MySession),
        session_isolation="REPEATABLE READ",
        hooks=[Metrics()],
    )
    QueueWorker(engine, jobs, included_names={"email.send"}, listen=False, session_factory=lambda: MySession(engine))

    QueueWorker(engine, {"blocking": render})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    QueueWorker(engine, jobs, 10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    QueueWorker(engine, jobs, retry_delay="1s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@asynccontextmanager
async def lifespan(_app: object) -> AsyncGenerator[None]:
    engine = sqlite_engine("app.db", synchronous="FULL", pool_size=5)
    assert_type(engine, AsyncEngine)
    assert_type(engine_from_url("postgresql://app@localhost/app", pool_size=5), AsyncEngine)
    await migrate.upgrade(engine)
    assert_type(await migrate.schema_version(engine), int | None)
    others = Handlers()
    jobs.include(others)
    uninstall = install_hooks(Metrics())
    assert_type(uninstall, Callable[[], None])
    async with QueueWorker(engine, jobs) as worker:
        assert_type(worker, QueueWorker)
        assert_type(worker.id, UUID | None)
        assert_type(worker.healthy, bool)
        yield
    uninstall()


async def by_hand(worker: QueueWorker) -> None:
    await worker.start()
    await worker.stop(grace=timedelta(seconds=5))
    assert_type(await worker.drain(), dict[str, int])
    await worker.run()


async def recurring(db: AsyncSession | AsyncEngine) -> None:
    plan = await register_cron_jobs(
        db,
        [
            CronJob("report.daily", "0 6 * * *", timezone="Europe/Amsterdam", data={"days": 1}),
            CronJob("queue_kit.queue.cleanup", "0 1 * * *", priority=9, handler_timeout=timedelta(minutes=10)),
        ],
    )
    assert_type(plan, CronPlan)
    for names in (plan.added, plan.changed, plan.removed, plan.unchanged):
        assert_type(names, tuple[str, ...])
    await register_cron_jobs(db, [("report.daily", "0 6 * * *")])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


# --- operating, and the table itself ----------------------------------------------------------------------------------


async def operate(db: AsyncSession | AsyncConnection | AsyncEngine, job_id: int) -> None:
    assert_type(await cancel_job(db, job_id), JobState)
    await retry_job(db, job_id)
    assert_type(await get_job(db, job_id), JobRow | None)
    assert_type(await list_jobs(db, state=JobState.failed, name="email.send", limit=10, after=7), list[JobRow])
    found = await queue_insights(db)
    assert_type(found, Insights)
    assert_type(found.pending, int)
    assert_type(found.oldest_due_seconds, float | None)
    assert_type(found.by_name["email.send"], NameInsights)
    assert_type(found.unhandled_names, tuple[str, ...])
    await list_jobs(db, state="failed")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def allowed(request: Request) -> Access | None:
    return Access("ada", act=True) if "admin" in request.session else None


def mounted(engine: AsyncEngine) -> None:
    app: ASGIApp = dashboard(engine, authorize=allowed, title="orders", hidden_names=["payment.*"])
    dashboard(engine, authorize=lambda request: Access(request.headers["user"]))
    dashboard(engine, authorize=lambda _request: "ada")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Starlette(routes=[Mount("/queue", app)])


async def rows(session: AsyncSession) -> None:
    row = await session.get_one(JobRow, 7)
    assert_type(row.id, int)
    assert_type(row.name, str)
    assert_type(row.state, JobState)
    assert_type(row.is_complete, bool)
    assert_type(row.scheduled_at, datetime)
    assert_type(row.unique_key, str | None)
    assert_type(row.errors, list[dict[str, Any]] | None)
    assert_type(row.worker_id, UUID | None)

    failed = select(JobRow).where(JobRow.state == JobState.failed, JobRow.name.in_(jobs)).order_by(JobRow.id.desc())
    assert_type((await session.scalars(failed)).all()[0], JobRow)
    states = select(JobRow.state).where(not_(JobRow.is_complete), JobRow.cron_name.is_(None))
    assert_type((await session.scalars(states)).one(), JobState)
    live = select(func.count()).select_from(JobRow).where(JobRow.state.in_([JobState.ready, JobState.running]))
    assert_type(await session.scalar(live), int | None)
    await session.execute(delete(JobRow).where(JobRow.is_complete, JobRow.priority > 3))

    _ = row.attempts  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]


# --- sessions ---------------------------------------------------------------------------------------------------------


store_keys = [SigningKey("2026-11", "x" * 32)]
store = SessionStore(Email, keys=store_keys, issuer="shop", ages=TokenAges(access=300))
assert_type(session_jobs(store, max_revoked_age_in_days=30, use_dump=True), Handlers)
by_age = SessionStore(
    dict[str, Any], keys=store_keys, issuer="shop", ages=lambda session: TokenAges(refresh=session.data["age"])
)


def refused() -> None:
    SessionStore(Email, keys=[], issuer="shop", algorithm="RS256")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SessionStore(Email, keys=[])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def log_in(session: AsyncSession, engine: AsyncEngine, request: Request) -> None:
    pair = await store.create(session, Email(to="a@b.c"))
    assert_type(pair, TokenPair)
    await store.create(session, {"to": "a@b.c"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    found = await store.get(engine, "token")
    assert_type(found, StoredSession[Email])
    assert_type(found.data, Email)
    found.data = Email(to="c@d.e")  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert_type(await store.update(engine, replace(found, data=Email(to="c@d.e"))), StoredSession[Email])
    assert_type(await store.refresh_tokens(engine, "token"), TokenPair)
    await store.invalidate(engine, found)
    await store.invalidate(engine, found.id)
    assert_type(await store.cleanup(engine, 30, limit=10_000), int)
    assert_type(await load_session(request, store, engine), StoredSession[Email])
    bearer = SessionBearer(store, lambda request: engine)
    assert_type(await bearer(request), StoredSession[Email])
    Starlette().add_middleware(SessionCookies, store=store, db=lambda connection: engine, name="mail")
    assert_type(await session_in(request, store), StoredSession[Email] | None)
    start_session(request, store, pair)
    end_session(request, store)


@jobs.handler("queue_kit.session_store.potential_leaked_session")
async def report_leak(event: Event, session: AsyncSession, job: Job[LeakReport]) -> None:
    assert_type(job.data.refreshed_at, tuple[datetime, ...])


# --- in an application's tests ----------------------------------------------------------------------------------------


async def tests(session: AsyncSession, engine: AsyncEngine, order: Order) -> None:
    async with rolled_back(engine) as connection:
        assert_type(connection, AsyncConnection)
        assert_type(await drain(connection, jobs), dict[str, int])
    await drain(
        session,
        {"function": unregistered, "limited": Handler(unregistered, timeout=30)},
        max_runs=10,
        handler_timeout=timedelta(seconds=1),
        max_retry_count=1,
        retry_delay=0,
        session_factory=async_sessionmaker(engine, class_=MySession),
        hooks=[Metrics()],
    )
    await drain(engine, jobs)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    await move_clock(session, 60)
    await move_clock(session, timedelta(days=1))
    await move_clock(session, "1 day")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    assert_type(await enqueued(session), list[JobRow])
    assert_type(await enqueued(engine, "email.send", {"to": "a@b.c"}), list[JobRow])
    assert_type(await enqueued(session, draw_path, [Point(0, 1)]), list[JobRow])
    assert_type(await assert_enqueued(session, send_email), JobRow)
    assert_type(await assert_enqueued(session, send_email, Email(to="a@b.c")), JobRow)
    await assert_enqueued(session, make_thumbnail, Thumbnail(file_id=1, widths=[]))
    await assert_enqueued(session, send_email, order)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await assert_enqueued(session)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]

    await run_handler(send_email, Email(to="a@b.c"), session=session, retry_count=1)
    await run_handler(unregistered, Email(to="a@b.c"), job_id=7, scheduled_at=datetime.now(UTC))
    await run_handler(Handler(unregistered), Email(to="a@b.c"))
    await run_handler(blocking, Email(to="a@b.c"))
    await run_handler(plain)
    await run_handler(make_thumbnail, Thumbnail(file_id=1, widths=[]))
    await run_handler(send_email, order)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await run_handler(render, Email(to="a@b.c"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
