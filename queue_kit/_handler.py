"""A handler: an async function, its limits, and the type of its payload. It knows no queue and no database; the session
that it passes on is opaque to it."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeAlias, TypeVar

from queue_kit._payload import Payload, payload_of, resolved
from queue_kit.errors import ConfigurationError, InvalidJob
from queue_kit.event import Event
from queue_kit.job import Job, Seconds, check_max_retry_count, check_timeout
from queue_kit.retry import RetryDelay, check_retry_delay

T = TypeVar("T")

HandlerFunction: TypeAlias = Callable[[Event, Any, Job[T]], Coroutine[Any, Any, object]]


class Handler(Generic[T]):
    """An async function `(event, session, job)` that runs jobs of one name, with its limits.

    `timeout` is in seconds (`math.inf`: none), `max_retry_count` the number of tries in total, `retry_delay` seconds or
    a function of the failed try's number. What is `None` falls through to the worker. `T` is read from the annotation
    `Job[T]`. Raises `ConfigurationError` for anything that could not run.

    >>> async def send(event, session, job): ...
    >>> worker_takes = {"email.send": Handler(send, timeout=30)}
    """

    def __init__(
        self,
        function: HandlerFunction[T],
        *,
        timeout: Seconds | None = None,
        max_retry_count: int | None = None,
        retry_delay: RetryDelay | None = None,
    ) -> None:
        _check_function(function)
        self.function = function
        self.timeout: float | None
        self.max_retry_count: int | None
        self.timeout, self.max_retry_count = check_limits(timeout, max_retry_count)
        self.retry_delay: RetryDelay | None = None if retry_delay is None else check_retry_delay(retry_delay)
        self.payload: Payload = payload_of(function)

    def __call__(self, event: Event, session: Any, job: Job[T]) -> Coroutine[Any, Any, object]:
        """Call the function itself, as a unit test does."""
        return self.function(event, session, job)


def check_limits(
    timeout: Seconds | None, max_retry_count: int | None, *, argument: str = "timeout"
) -> tuple[float | None, int | None]:
    """The limits of a handler or a worker, with the timeout in seconds; else a `ConfigurationError`."""
    try:
        return check_timeout(timeout, argument), check_max_retry_count(max_retry_count)
    except InvalidJob as error:
        raise ConfigurationError(str(error)) from None


def _check_function(function: object) -> None:
    if isinstance(function, Handler):
        raise ConfigurationError(f"{function!r} is a handler already; register the function itself")
    if not callable(function):
        raise ConfigurationError(f"a handler is an async function, not {type(function).__name__}")
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(type(function).__call__):
        raise ConfigurationError(
            f"{name} has a `yield`, so calling it runs nothing: a handler returns, and yields none"
        )
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
        raise ConfigurationError(
            f"{name} is not an async function: write `async def`, or wrap blocking code as in_thread({name}) "
            f"for fn(event, job), in_process({name}) for fn(data); if it returns the handler, call it: {name}()"
        )
    try:
        inspect.signature(function).bind(*[None] * 3)
        positional = len(inspect.signature(function).parameters) >= 3
    except TypeError:
        positional = False
    if not positional:
        raise ConfigurationError(f"{name} must take three positional parameters: (event, session, job)")
    if _takes_the_event_second(function):
        raise ConfigurationError(f"the second parameter of {name} is the session; the order is (event, session, job)")


def _takes_the_event_second(function: Callable[..., object]) -> bool:
    _, second, *_ = inspect.signature(function).parameters.values()
    try:
        return resolved(function, second.annotation) is Event
    except ConfigurationError:  # a session's type may be imported for type checkers only
        return False
