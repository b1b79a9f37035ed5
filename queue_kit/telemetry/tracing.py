"""OpenTelemetry spans: one for each job that is added, one for each run, and below it what the run's event timed. A run
finds the span that added its job through the `traceparent` stored with it, whichever process that was.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from queue_kit import __version__
from queue_kit.event import Span
from queue_kit.hooks import Settled, Started, WorkerState
from queue_kit.job import NewJob, Outcome, Verdict
from queue_kit.telemetry import _conventions as conventions

try:
    from opentelemetry import context, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as _missing:
    raise ImportError("tracing needs opentelemetry-api: pip install 'queue-kit[tracing]'") from _missing

MOST_SPANS = 100
"""Child spans of a run that are exported; they are made when it settles, on the event loop, some 15 µs each."""

_FAILURES = (Verdict.failed, Verdict.retried, Verdict.lost)

_propagator = TraceContextTextMapPropagator()  # W3C, and no baggage: it may hold anything, and would be stored


@dataclass(slots=True)
class _Run:
    """A run whose span is open, and the nanoseconds at which it began."""

    span: trace.Span
    began: int

    def after(self, seconds: float) -> int:
        return self.began + round(seconds * 1e9)


class OpenTelemetryTracing:
    """A hook that traces jobs from where they are added to where they run. Install it before workers start.

    A run is a trace of its own, linked to the span that added its job; with `continue_traces` it becomes part of that
    one's trace. `tracer_provider` is the global one unless given. In the handler the run's span is the current one.

    >>> uninstall = install_hooks(OpenTelemetryTracing())
    >>> uninstall()
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None, *, continue_traces: bool = False) -> None:
        self._tracer = trace.get_tracer("queue_kit", __version__, tracer_provider)
        self._continue_traces = continue_traces
        self._runs: dict[tuple[UUID, int], _Run] = {}

    def on_enqueue(self, new_job: NewJob[Any]) -> Mapping[str, str]:
        """Make the span to which the job's runs belong. It has no length: the insert itself is the database's span."""
        span = self._tracer.start_span(
            f"{conventions.ENQUEUE} {new_job.name}",
            kind=trace.SpanKind.PRODUCER,
            attributes=_attributes(conventions.ENQUEUE, conventions.CREATE, new_job.name),
        )
        span.end()
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(span))
        return carrier

    def on_started(self, record: Started) -> None:
        """Begin a run's span, and make it the current one of the handler."""
        creation = _context_of(record.trace_context)
        creator = trace.get_current_span(creation).get_span_context()
        linked = creator.is_valid and not self._continue_traces
        job = record.job
        began = time.time_ns()
        span = self._tracer.start_span(
            f"{conventions.RUN} {job.name}",
            # Never what happens to be current here: a worker may be started inside of somebody's span.
            context=context.Context() if linked else creation,
            kind=trace.SpanKind.CONSUMER,
            attributes=_attributes(conventions.RUN, conventions.PROCESS, job.name)
            | {
                conventions.MESSAGE_ID: str(job.id),
                conventions.CLIENT_ID: str(record.worker_id),
                conventions.ATTEMPT: job.attempt,
            },
            links=[trace.Link(creator)] if linked else [],
            start_time=began,
        )
        self._runs[record.worker_id, job.id] = _Run(span, began)
        context.attach(trace.set_span_in_context(span, context.Context()))  # it goes with the run's own context

    def on_settled(self, record: Settled) -> None:
        """End a run's span, when the run ended."""
        run = self._runs.pop((record.worker_id, record.job.id), None)
        if run is None:  # a job that is refused ends without a start
            return
        if run.span.is_recording():
            run.span.set_attribute(conventions.OUTCOME, record.outcome.verdict.value)
            if record.spans is not None:
                self._tell_spans(run, record.spans, record.seconds)
            if record.outcome.verdict in _FAILURES:
                _tell_failure(run.span, record.outcome, run.after(record.seconds))
        run.span.end(run.after(record.seconds))

    def on_worker_state(self, record: WorkerState) -> None:
        """End what a worker that stopped could not give back."""
        if record.state == "stopped":
            for key in [key for key in self._runs if key[0] == record.worker_id]:
                self._runs.pop(key).span.end()

    def _tell_spans(self, run: _Run, root: Span, seconds: float) -> None:
        """Make spans of what the event timed, below the run's own."""
        if root.aborted is not None:
            run.span.add_event(conventions.ABORTED, timestamp=run.after(root.aborted))
        parents = {id(root): trace.set_span_in_context(run.span, context.Context())}
        left_out = 0
        for number, (parent, timed) in enumerate(_below(root)):
            if number >= MOST_SPANS:
                left_out += 1
                continue
            span = self._tracer.start_span(timed.name, context=parents[id(parent)], start_time=run.after(timed.started))
            if timed.aborted is not None:
                span.add_event(conventions.ABORTED, timestamp=run.after(timed.aborted))
            span.end(run.after(seconds if timed.duration is None else timed.started + timed.duration))
            parents[id(timed)] = trace.set_span_in_context(span, context.Context())
        if left_out:
            run.span.set_attribute(conventions.SPANS_LEFT_OUT, left_out)


def _attributes(operation: str, kind: str, name: str) -> dict[str, str | int]:
    return {
        conventions.SYSTEM: conventions.QUEUE_KIT,
        conventions.OPERATION_NAME: operation,
        conventions.OPERATION_TYPE: kind,
        conventions.DESTINATION: name,
    }


def _context_of(stored: object) -> context.Context:
    """What `on_enqueue` stored, in a context of its own; other programs may store anything."""
    carrier = stored if isinstance(stored, Mapping) else {}
    texts = {key: value for key, value in carrier.items() if isinstance(value, str)}
    return _propagator.extract(texts, context.Context())


def _tell_failure(span: trace.Span, outcome: Outcome, at: int) -> None:
    kept = outcome.error or {}
    kind = str(kept.get("class") or outcome.verdict.value)
    message = str(kept.get("message") or kept.get("reason") or "")
    span.set_attribute(conventions.ERROR_TYPE, kind)
    span.set_status(trace.Status(trace.StatusCode.ERROR, message))
    if "class" in kept:
        told = {
            conventions.EXCEPTION_TYPE: kind,
            conventions.EXCEPTION_MESSAGE: message,
            conventions.EXCEPTION_STACKTRACE: str(kept.get("traceback", "")),
        }
        span.add_event(conventions.EXCEPTION, told, at)


def _below(root: Span) -> Iterator[tuple[Span, Span]]:
    """The spans below, each with its parent, parents first: what is left out has none that stays."""
    waiting = [root]
    for parent in waiting:
        for child in parent.children:
            yield parent, child
            waiting.append(child)
