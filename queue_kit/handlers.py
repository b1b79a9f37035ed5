"""Registering handlers by name, and adding their jobs with their payload's type."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar, overload

from queue_kit._database import Database, check_database
from queue_kit._handler import Handler, HandlerFunction
from queue_kit.enqueue import add_jobs
from queue_kit.errors import ConfigurationError, InvalidJob
from queue_kit.job import DEFAULT_PRIORITY, NewJob, Seconds, check_name
from queue_kit.retry import RetryDelay

T = TypeVar("T")


class NamedHandler(Handler[T]):
    """A registered handler: what `@jobs.handler(...)` leaves in place of the function, still callable as it was."""

    def __init__(
        self,
        name: str,
        function: HandlerFunction[T],
        *,
        timeout: Seconds | None = None,
        max_retry_count: int | None = None,
        retry_delay: RetryDelay | None = None,
    ) -> None:
        super().__init__(function, timeout=timeout, max_retry_count=max_retry_count, retry_delay=retry_delay)
        self.name = name
        self.__doc__ = function.__doc__
        self.__name__: str = getattr(function, "__name__", name)
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<handler {self.name!r}>"

    def new(
        self,
        data: T | None = None,
        *,
        priority: int = DEFAULT_PRIORITY,
        scheduled_at: datetime | None = None,
        delay: Seconds | None = None,
        handler_timeout: Seconds | None = None,
        max_retry_count: int | None = None,
        unique_key: str | None = None,
    ) -> NewJob[T]:
        """A job for this handler, for `add_jobs`. Raises `InvalidJob` for a payload that is not its type.

        >>> send_email.new(Email(to="a@b.c"), delay=60)  # doctest: +SKIP
        """
        value: Any = {} if data is None else data
        return NewJob(
            self.name,
            value,
            priority,
            scheduled_at,
            delay,
            handler_timeout,
            max_retry_count,
            unique_key,
            encode=self.payload.encode,
        )

    @overload
    async def add(
        self,
        db: Database,
        data: T | None = None,
        *,
        priority: int = ...,
        scheduled_at: datetime | None = ...,
        delay: Seconds | None = ...,
        handler_timeout: Seconds | None = ...,
        max_retry_count: int | None = ...,
        unique_key: None = None,
    ) -> int: ...
    @overload
    async def add(
        self,
        db: Database,
        data: T | None = None,
        *,
        priority: int = ...,
        scheduled_at: datetime | None = ...,
        delay: Seconds | None = ...,
        handler_timeout: Seconds | None = ...,
        max_retry_count: int | None = ...,
        unique_key: str | None,
    ) -> int | None: ...
    async def add(
        self,
        db: Database,
        data: T | None = None,
        *,
        priority: int = DEFAULT_PRIORITY,
        scheduled_at: datetime | None = None,
        delay: Seconds | None = None,
        handler_timeout: Seconds | None = None,
        max_retry_count: int | None = None,
        unique_key: str | None = None,
    ) -> int | None:
        """Add a job for this handler, as `add_job` does.

        >>> await send_email.add(session, Email(to="a@b.c"), priority=1)  # doctest: +SKIP
        """
        check_database(db)  # before the payload: a forgotten db has the payload in its place
        job = self.new(
            data,
            priority=priority,
            scheduled_at=scheduled_at,
            delay=delay,
            handler_timeout=handler_timeout,
            max_retry_count=max_retry_count,
            unique_key=unique_key,
        )
        (job_id,) = await add_jobs(db, [job])
        return job_id


class Handlers(Mapping[str, Handler[Any]]):
    """The handlers of an application or of one of its modules, by name.

    >>> jobs = Handlers()
    >>> @jobs.handler("email.send", timeout=30)
    ... async def send_email(event: Event, session: AsyncSession, job: Job[Email]) -> None: ...
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler[Any]] = {}

    def handler(
        self,
        name: str,
        *,
        timeout: Seconds | None = None,
        max_retry_count: int | None = None,
        retry_delay: RetryDelay | None = None,
    ) -> Callable[[HandlerFunction[T]], NamedHandler[T]]:
        """Register an async function `(event, session, job)` under a name. The arguments are those of `Handler`.

        Raises `ConfigurationError` for a name that is taken and a function that could not run.
        """
        if callable(name):
            raise ConfigurationError('a handler has a name: write @jobs.handler("email.send") above the function')
        _check_name(name)

        def register(function: HandlerFunction[T]) -> NamedHandler[T]:
            handler = NamedHandler(
                name, function, timeout=timeout, max_retry_count=max_retry_count, retry_delay=retry_delay
            )
            self._add(name, handler)
            return handler

        return register

    def add(
        self,
        name: str,
        function: HandlerFunction[T],
        *,
        timeout: Seconds | None = None,
        max_retry_count: int | None = None,
        retry_delay: RetryDelay | None = None,
    ) -> NamedHandler[T]:
        """Register a function that was not written here: a built-in job, or one made by `in_thread`, `in_process`.

        >>> jobs = Handlers()
        >>> cleanup = jobs.add("queue_kit.queue.cleanup", job_queue_cleanup())
        """
        return self.handler(name, timeout=timeout, max_retry_count=max_retry_count, retry_delay=retry_delay)(function)

    def include(self, other: "Handlers") -> None:
        """Take over all handlers of another module. Raises `ConfigurationError`, and takes none, if a name is taken."""
        taken = sorted(set(self._handlers) & set(other))
        if taken:
            raise ConfigurationError(f"already registered: {', '.join(taken)}")
        self._handlers.update(other)

    def _add(self, name: str, handler: Handler[Any]) -> None:
        if name in self._handlers:
            raise ConfigurationError(f"{name!r} is already registered")
        self._handlers[name] = handler

    def __getitem__(self, name: str) -> Handler[Any]:
        return self._handlers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)


def as_handlers(handlers: object) -> dict[str, Handler[Any]]:
    """What a worker was given, as a mapping of names to handlers; else a `ConfigurationError`."""
    if not isinstance(handlers, Mapping):
        raise ConfigurationError(f"handlers is a Handlers or a mapping of names, not {type(handlers).__name__}")
    found: dict[str, Handler[Any]] = {}
    for name, handler in handlers.items():
        _check_name(name)
        found[name] = handler if isinstance(handler, Handler) else Handler(handler)
    return found


def _check_name(name: object) -> None:
    try:
        check_name(name)
    except InvalidJob as error:
        raise ConfigurationError(f"a handler's {error}") from None
