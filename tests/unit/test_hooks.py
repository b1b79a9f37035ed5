"""Hooks: who hears what in which order, and that nothing a hook does harms whom it watches.

What enqueue tells its hooks stands with the tests of enqueue.
"""

import contextlib
import dataclasses
import logging
from datetime import UTC, datetime
from uuid import UUID

import pytest

from queue_kit import (
    ConfigurationError,
    Enqueued,
    Job,
    NewJob,
    Outcome,
    Settled,
    Started,
    Verdict,
    WorkerState,
    insert_jobs,
    install_hooks,
)
from queue_kit.hooks import Observers, emit_enqueued, trace_context_for

NOW = datetime(2030, 1, 1, tzinfo=UTC)
WORKER = UUID(int=1)
JOB = Job(id=1, name="a", data={}, priority=5, scheduled_at=NOW, created_at=NOW)
STARTED = Started(WORKER, JOB, None, NOW)
SETTLED = Settled(WORKER, JOB, Outcome(Verdict.completed), 0.5, None)
STATE = WorkerState(WORKER, "started")
ENQUEUED = Enqueued(1, NewJob("a"))


def tell_everything(observers: Observers) -> None:
    observers.worker_state(STATE)
    observers.started(STARTED)
    observers.settled(SETTLED)


class Hook:
    """Notes what it hears, under its own name."""

    def __init__(self, heard: list, name: str = "hook") -> None:
        self.heard = heard
        self.name = name

    def on_enqueued(self, record):
        self.heard.append((self.name, record))

    on_started = on_settled = on_worker_state = on_enqueued


@pytest.fixture
def install():
    with contextlib.ExitStack() as stack:

        def installing(*hooks):
            uninstall = install_hooks(*hooks)
            stack.callback(uninstall)
            return uninstall

        yield installing


def test_a_workers_own_hooks_hear_first_and_then_those_of_the_process(install):
    heard = []
    install(Hook(heard, "installed"))
    observers = Observers([Hook(heard, "first"), Hook(heard, "second")])
    tell_everything(observers)
    names = ["first", "second", "installed"]
    assert heard == [(name, record) for record in (STATE, STARTED, SETTLED) for name in names]


def test_a_workers_own_hooks_hear_nothing_of_enqueue_nor_of_another_worker():
    heard, other = [], []
    Observers([Hook(heard)])
    tell_everything(Observers([Hook(other)]))
    emit_enqueued([ENQUEUED])
    assert heard == []
    assert len(other) == 3


def test_a_hook_has_any_of_the_methods(install):
    heard = []

    class OnlySettled:
        def on_settled(self, record):
            heard.append(record)

    install(OnlySettled())
    tell_everything(Observers([OnlySettled()]))
    emit_enqueued([ENQUEUED])
    assert heard == [SETTLED, SETTLED]


class Misspelt:
    def on_settle(self, record): ...


class Async:
    async def on_settled(self, record): ...


@pytest.mark.parametrize(
    "hook",
    [object(), 5, Misspelt(), Async(), Misspelt, Hook],
    ids=["no method", "no hook", "misspelt", "async", "misspelt class", "class"],
)
def test_what_would_never_hear_anything_is_refused(hook):
    for take in (install_hooks, lambda hook: Observers([hook])):
        with pytest.raises(ConfigurationError, match="hook"):
            take(hook)


def test_a_hook_of_enqueue_alone_is_refused_by_a_worker_which_would_never_tell_it_anything(install):
    class OfEnqueue:
        def on_enqueue(self, new_job): ...
        def on_enqueued(self, record): ...

    install(OfEnqueue())
    with pytest.raises(ConfigurationError, match="install_hooks"):
        Observers([OfEnqueue()])


class BrokenHook:
    def on_started(self, record):
        raise ValueError("broken")

    on_settled = on_worker_state = on_enqueue = on_enqueued = on_started


class BrokenLookup:
    def __getattr__(self, name):
        raise LookupError(name)


@pytest.mark.parametrize("kind", [BrokenHook, BrokenLookup], ids=["raises", "has no attributes"])
def test_what_a_hook_raises_is_logged_and_the_others_hear_all_the_same(install, caplog, kind):
    heard = []
    install(kind(), Hook(heard, "installed"))
    with caplog.at_level(logging.ERROR, "queue_kit.hooks"):
        tell_everything(Observers([kind(), Hook(heard, "own")]))
        assert trace_context_for(NewJob("a")) is None
        emit_enqueued([ENQUEUED])
    assert [name for name, _ in heard] == ["own", "installed"] * 3 + ["installed"]
    methods = ["on_worker_state", "on_started", "on_settled"]
    expected = [f"hook {kind.__name__}.{method} failed" for method in methods for _ in range(2)]
    expected += [f"hook {kind.__name__}.{method} failed" for method in ("on_enqueue", "on_enqueued")]
    assert [record.getMessage() for record in caplog.records] == expected
    assert all(record.exc_info for record in caplog.records)


def test_uninstalling_twice_is_harmless_and_takes_away_nobody_else(install):
    heard = []

    class Equal(Hook):
        def __eq__(self, other):
            return True

        __hash__ = None

    uninstall = install(Equal(heard, "gone"))
    install(Equal(heard, "stays"))
    uninstall()
    uninstall()
    emit_enqueued([ENQUEUED])
    assert [name for name, _ in heard] == ["stays"]


def test_a_hook_that_is_installed_twice_hears_once_until_both_are_taken_away(install):
    heard = []
    hook = Hook(heard)
    first, second = install(hook), install(hook)
    emit_enqueued([ENQUEUED])
    assert len(heard) == 1
    second()
    emit_enqueued([ENQUEUED])
    assert len(heard) == 2
    first()
    emit_enqueued([ENQUEUED])
    assert len(heard) == 2


def test_a_hook_that_is_installed_and_a_workers_own_hears_once(install):
    heard = []
    hook = Hook(heard)
    install(hook)
    Observers([hook, hook]).settled(SETTLED)
    assert len(heard) == 1


def test_a_hook_may_take_itself_away_while_it_is_called(install):
    heard = []

    class Once(Hook):
        def on_settled(self, record):
            super().on_enqueued(record)
            uninstall()

    uninstall = install(Once(heard, "once"))
    install(Hook(heard, "after"))
    observers = Observers([])
    observers.settled(SETTLED)
    observers.settled(SETTLED)
    assert [name for name, _ in heard] == ["once", "after", "after"]


def test_the_trace_contexts_of_several_hooks_are_merged_and_the_later_wins(install):
    class Answering:
        def __init__(self, answer):
            self.answer = answer

        def on_enqueue(self, new_job):
            return self.answer

    install(Answering({"a": 1, "b": 1}), Answering(None), Answering([("c", 1)]), Answering({"b": 2}), Answering({}))
    assert trace_context_for(NewJob("a")) == {"a": 1, "b": 2}


def test_without_hooks_there_is_no_trace_context():
    assert trace_context_for(NewJob("a")) is None


@pytest.mark.parametrize(
    "answer",
    [{"x": object()}, {"x": float("nan")}, {"x": "\x00"}, {"x": "\udc80"}, {1: "x"}, {"x": {"y": {1}}}],
    ids=["no JSON", "NaN", "NUL", "surrogate", "key", "set"],
)
def test_a_trace_context_that_no_database_can_store_is_logged_and_harms_no_job(install, caplog, answer):
    class Careless:
        def on_enqueue(self, new_job):
            return answer

    class Careful:
        def on_enqueue(self, new_job):
            return {"traceparent": "00-1-2-01"}

    install(Careless(), Careful())
    with caplog.at_level(logging.ERROR, "queue_kit.hooks"):
        insert_jobs([NewJob("a")])
        assert trace_context_for(NewJob("a")) == {"traceparent": "00-1-2-01"}
    assert "Careless.on_enqueue" in caplog.text


@pytest.mark.parametrize("record", [STARTED, SETTLED, STATE, ENQUEUED], ids=lambda record: type(record).__name__)
def test_records_are_frozen(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, None)
