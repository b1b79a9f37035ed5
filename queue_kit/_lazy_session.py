"""The `AsyncSession` that handlers receive unless `session_factory` makes others, made when first used; and how it,
or any other, tells what guards it (`_session.py`) of its transaction.
"""

from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from queue_kit.enqueue import hand_over_key
from queue_kit.errors import JobAborted, LeaseLost
from queue_kit.models import JobRow

GUARD = "queue_kit.guard"
"""Where a handler's session keeps, in its `info`, what guards it."""


class Guard(Protocol):
    """What stands between a session and its database."""

    def begun(self, connection: Connection) -> None:
        """A transaction began, or a savepoint in it."""

    def before_commit(self, session: Session) -> None:
        """It is about to commit."""

    def ended(self) -> None:
        """The transaction is over."""


class LazySession(AsyncSession):
    """The `AsyncSession` that handlers receive unless `session_factory` makes others. It makes the `Session` beneath
    when it is first asked for anything: most small jobs never do, and it takes as long (12 us) as half of such a job.
    """

    # On the class, since most runs look at none of it.
    _retired = False
    _refusal: JobAborted | None = None

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.on_made: Callable[[Session], None] | None = None

    def retire(self, reason: JobAborted | None) -> None:
        """Refuse to be made from here on, and let go of what waits for it."""
        self._refusal, self._retired, self.on_made = reason, True, None

    def __getattr__(self, name: str) -> Any:
        if "sync_session" in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if self._retired:
            raise run_is_over() if self._refusal is None else self._refusal.with_traceback(None)
        super().__init__(self._engine, sync_session_class=FencedSession, expire_on_commit=False)
        if self.on_made is not None:
            self.on_made(self.sync_session)
        return getattr(self, name)


class FencedSession(Session):
    """The session beneath a handler's `AsyncSession`, unless `session_factory` makes others. Its listeners are those of
    the class: to add them to each session takes longer (170 us) than all the rest of a small job."""


def run_is_over() -> LeaseLost:
    """What a task that a handler left behind hears when it asks for the session."""
    return LeaseLost("the run that this session belongs to is over")


def guard_of(session: Session) -> Guard | None:
    """What guards a session; nothing guards the one that a worker probes its database with."""
    guard: Guard | None = session.info.get(GUARD)
    return guard


def listen(target: Session | type[Session]) -> None:
    """Have a session, or all of a class, tell its guard what becomes of its transaction."""

    @event.listens_for(target, "after_begin")
    def _(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
        if (guard := guard_of(session)) is not None:
            guard.begun(connection)

    @event.listens_for(target, "before_flush")
    def _(session: Session, *_: object) -> None:
        hand_over_key(session, {row.unique_key for row in session.new if isinstance(row, JobRow)})

    @event.listens_for(target, "before_commit")
    def _(session: Session) -> None:
        if (guard := guard_of(session)) is not None:
            guard.before_commit(session)

    @event.listens_for(target, "after_transaction_end")
    def _(session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None and (guard := guard_of(session)) is not None:
            guard.ended()


listen(FencedSession)
