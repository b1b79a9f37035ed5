"""OpenTelemetry spans through a real queue, with the real SDK: from what adds a job to what its handler timed."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from queue_kit import (
    NewJob,
    QueueWorker,
    WorkerState,
    add_job,
    add_jobs,
    in_thread,
    insert_jobs,
    install_hooks,
)
from queue_kit.telemetry import tracing
from queue_kit.telemetry.tracing import OpenTelemetryTracing
from tests.database.running import nothing
from tests.support import Recorder, change, row_of, until


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


@pytest.fixture
def install(provider) -> Iterator[Callable[..., None]]:
    uninstall = []
    yield lambda **options: uninstall.append(install_hooks(OpenTelemetryTracing(provider, **options)))
    for each in uninstall:
        each()


@pytest.fixture
def spans(exporter) -> Callable[..., list[ReadableSpan]]:
    """The finished spans of a name."""
    return lambda name: [span for span in exporter.get_finished_spans() if span.name == name]


def ids(span: ReadableSpan | trace.Span) -> tuple[int, int]:
    about = span.get_span_context()
    assert about is not None
    return about.trace_id, about.span_id


# --- across processes -------------------------------------------------------------------------------------------------


async def test_a_run_is_a_trace_of_its_own_linked_to_the_span_that_added_its_job(
    engine, jobs, install, provider, spans
):
    install()
    jobs.add("a", nothing)
    with provider.get_tracer("app").start_as_current_span("request") as request:
        job_id = await add_job(engine, "a")
    hook = Recorder()
    await QueueWorker(engine, jobs, hooks=[hook]).drain()
    (enqueue,), (run,) = spans("enqueue a"), spans("run a")
    assert (enqueue.kind, run.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert (enqueue.context.trace_id, enqueue.parent.span_id) == ids(request)
    assert run.parent is None
    assert run.context.trace_id != enqueue.context.trace_id
    assert [(link.context.trace_id, link.context.span_id) for link in run.links] == [ids(enqueue)]
    assert dict(enqueue.attributes) == {
        "messaging.system": "queue_kit",
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "create",
        "messaging.destination.name": "a",
    }
    assert dict(run.attributes) == {
        "messaging.system": "queue_kit",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": "a",
        "messaging.message.id": str(job_id),
        "messaging.client.id": str(hook.settled[0].worker_id),
        "queue_kit.job.attempt": 1,
        "queue_kit.job.outcome": "completed",
    }
    assert run.status.status_code is StatusCode.UNSET
    assert (run.end_time - run.start_time) / 1e9 == pytest.approx(hook.settled[0].seconds, abs=1e-6)


async def test_continued_traces_hold_the_run_below_the_span_that_added_its_job(engine, jobs, install, spans):
    install(continue_traces=True)
    jobs.add("a", nothing)
    await add_job(engine, "a")
    await QueueWorker(engine, jobs).drain()
    (enqueue,), (run,) = spans("enqueue a"), spans("run a")
    assert (run.context.trace_id, run.parent.span_id) == ids(enqueue)
    assert run.links == ()


async def test_each_try_is_a_run_linked_to_the_same_span(engine, jobs, install, spans):
    install()

    @jobs.handler("a", retry_delay=0)
    async def a(event, session, job):
        raise ValueError("no")

    await add_job(engine, "a")
    await QueueWorker(engine, jobs).drain()
    (enqueue,), runs = spans("enqueue a"), spans("run a")
    assert [run.attributes["queue_kit.job.attempt"] for run in runs] == [1, 2]
    assert len({run.context.trace_id for run in runs}) == 2
    assert [(run.links[0].context.trace_id, run.links[0].context.span_id) for run in runs] == [ids(enqueue)] * 2


STORED = (
    None,
    {"traceparent": 5},
    {"traceparent": ["00"]},
    {"traceparent": "nonsense"},
    {"tracestate": "a=b"},
    [],
    "",
    5,
)
"""What other programs may have left where a trace is stored."""


async def test_a_run_whose_job_has_no_trace_is_a_trace_of_its_own(engine, jobs, install, spans, caplog):
    install()
    jobs.add("a", nothing)
    for stored in STORED:
        await change(engine, await add_job(engine, "a"), trace_context=stored)
    await QueueWorker(engine, jobs).drain()
    assert [(run.parent, run.links) for run in spans("run a")] == [(None, ())] * len(STORED)
    assert "failed" not in caplog.text


async def test_the_statement_of_insert_jobs_carries_a_trace_and_no_baggage(engine, install, spans):
    install()
    token = context.attach(baggage.set_baggage("customer", "secret"))
    statement = insert_jobs([NewJob("a")])
    context.detach(token)
    async with engine.begin() as connection:
        ((job_id, _),) = (await connection.execute(statement)).all()
    (enqueue,) = spans("enqueue a")
    stored = (await row_of(engine, job_id)).trace_context
    assert list(stored) == ["traceparent"]
    assert stored["traceparent"].startswith("00-{:032x}-{:016x}-".format(*ids(enqueue)))


async def test_without_a_tracer_nothing_is_stored_and_jobs_run(engine, jobs):
    seen = []

    @jobs.handler("a")
    async def a(event, session, job):
        seen.append(trace.get_current_span().get_span_context().is_valid)

    uninstall = install_hooks(OpenTelemetryTracing(trace.NoOpTracerProvider()))
    try:
        job_id = await add_job(engine, "a")
        assert (await row_of(engine, job_id)).trace_context is None
        assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    finally:
        uninstall()
    assert seen == [False]


# --- in the handler ---------------------------------------------------------------------------------------------------


async def test_in_the_handler_and_its_threads_the_runs_span_is_the_current_one(engine, jobs, install, provider, spans):
    install()
    seen = {}

    @jobs.handler("a", retry_delay=0)
    async def a(event, session, job):
        await asyncio.sleep(0)
        seen[job.id] = ids(trace.get_current_span())
        with provider.get_tracer("app").start_as_current_span("work"):
            await add_job(engine, "next")

    def in_a_thread(event, job):
        seen[job.id] = ids(trace.get_current_span())

    jobs.add("thread", in_thread(in_a_thread))
    jobs.add("next", nothing)
    with provider.get_tracer("app").start_as_current_span("start-up"):  # a worker may be started in any context
        job_ids = await add_jobs(engine, [NewJob("a"), NewJob("thread"), NewJob("a")])
        await QueueWorker(engine, jobs, parallel_count=2).drain()
        assert trace.get_current_span().name == "start-up"
    runs = {int(span.attributes["messaging.message.id"]): span for span in [*spans("run a"), *spans("run thread")]}
    assert seen == {job_id: ids(runs[job_id]) for job_id in job_ids}
    assert {run.parent for run in runs.values()} == {None}
    works, adds = spans("work"), spans("enqueue next")
    assert sorted(work.parent.span_id for work in works) == sorted(run.context.span_id for run in spans("run a"))
    assert sorted(add.parent.span_id for add in adds) == sorted(work.context.span_id for work in works)


async def test_what_the_event_timed_becomes_spans_below_the_run(engine, jobs, install, spans):
    install()
    hook = Recorder()

    @jobs.handler("a")
    async def a(event, session, job):
        with event.span("list") as child:
            await asyncio.sleep(0.02)
            with child.span("query"):
                await asyncio.sleep(0.01)
        event.child().start("forgotten")

    await add_job(engine, "a")
    await QueueWorker(engine, jobs, hooks=[hook]).drain()
    (run,), (listing,), (query,), (forgotten,) = (spans(each) for each in ("run a", "list", "query", "forgotten"))
    assert [ids(run)] * 2 == [(each.context.trace_id, each.parent.span_id) for each in (listing, forgotten)]
    assert (query.context.trace_id, query.parent.span_id) == ids(listing)
    assert run.start_time <= listing.start_time < query.start_time < query.end_time <= listing.end_time <= run.end_time
    (timed, _) = hook.settled[0].spans.children
    assert (listing.start_time - run.start_time) / 1e9 == pytest.approx(timed.started, abs=1e-6)
    assert (query.start_time - listing.start_time) / 1e9 >= 0.02
    assert forgotten.end_time == run.end_time


async def test_spans_beyond_the_bound_are_left_out_and_counted(engine, jobs, install, spans, monkeypatch):
    monkeypatch.setattr(tracing, "MOST_SPANS", 3)
    install()

    @jobs.handler("a")
    async def a(event, session, job):
        for _ in range(5):
            with event.span("part") as part, part.span("of it"):
                pass

    await add_job(engine, "a")
    await QueueWorker(engine, jobs).drain()
    (run,) = spans("run a")
    assert (len(spans("part")), len(spans("of it"))) == (3, 0)
    assert run.attributes["queue_kit.job.spans_left_out"] == 7


# --- how a run ends ---------------------------------------------------------------------------------------------------


async def test_a_failure_is_told_with_its_error(engine, jobs, install, spans):
    install()

    @jobs.handler("a", max_retry_count=1)
    async def a(event, session, job):
        raise ValueError("no such user")

    await add_job(engine, "a")
    await QueueWorker(engine, jobs).drain()
    (run,) = spans("run a")
    assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "no such user")
    assert (run.attributes["error.type"], run.attributes["queue_kit.job.outcome"]) == ("ValueError", "failed")
    (event,) = run.events
    assert (event.name, event.attributes["exception.type"]) == ("exception", "ValueError")
    assert event.attributes["exception.message"] == "no such user"
    assert "in a\n" in event.attributes["exception.stacktrace"]
    assert event.timestamp == run.end_time


async def test_a_run_that_was_aborted_says_when(engine, jobs, install, spans):
    install()

    @jobs.handler("a", timeout=0.05, max_retry_count=1)
    async def a(event, session, job):
        with event.span("during"):
            await asyncio.Event().wait()

    await add_job(engine, "a")
    await QueueWorker(engine, jobs).drain()
    (run,), (during,) = spans("run a"), spans("during")
    assert run.attributes["error.type"] == "DeadlineExceeded"
    aborted, _ = run.events
    assert (aborted.name, during.events[0].name) == ("queue_kit.aborted", "queue_kit.aborted")
    assert 0.05e9 <= aborted.timestamp - run.start_time <= run.end_time - run.start_time


async def test_what_a_stopped_worker_could_not_give_back_ends_with_it(provider, spans, engine, jobs):
    hook = OpenTelemetryTracing(provider)
    recorder = Recorder()
    jobs.add("a", nothing)
    await add_job(engine, "a")
    await QueueWorker(engine, jobs, hooks=[recorder]).drain()
    hook.on_started(recorder.started[0])
    assert spans("run a") == []
    hook.on_worker_state(WorkerState(recorder.started[0].worker_id, "stopped"))
    assert len(spans("run a")) == 1
    hook.on_settled(recorder.settled[0])
    assert len(spans("run a")) == 1


async def test_a_job_that_is_refused_has_no_run(engine, jobs, install, spans):
    install()
    hook = Recorder()
    jobs.add("a", nothing)
    job_id = await add_job(engine, "a")
    await change(engine, job_id, cancel_requested=True)
    await QueueWorker(engine, jobs, hooks=[hook]).drain()
    await until(lambda: hook.settled)
    assert spans("run a") == []
