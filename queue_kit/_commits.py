"""Commits that pass a handler's session by: each one of its connection asks the guard of that session first."""

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event

from queue_kit.errors import UnfencedCommit

MayCommit: TypeAlias = Callable[[], bool]
"""Whether a session's connection may commit now."""


class GuardedTransaction:
    """asyncpg's transaction, as SQLAlchemy uses it, whose commit asks first.

    `last_words` is a statement that is sent together with COMMIT: one answer of the server less to wait for, a fifth of
    what a small transaction takes. Where it fails, nothing is committed.
    """

    __slots__ = ("_driver", "_may_commit", "_transaction", "last_words")

    def __init__(self, driver: Any, transaction: Any, may_commit: MayCommit) -> None:
        self._driver = driver
        self._transaction = transaction
        self._may_commit = may_commit
        self.last_words: str | None = None

    def commit(self) -> Awaitable[None]:
        """Commit, or roll back and raise `UnfencedCommit`."""
        if not self._may_commit():
            return self._refuse()
        committing: Awaitable[None] = self._transaction.commit() if self.last_words is None else self._say_and_commit()
        return committing

    def rollback(self) -> Awaitable[None]:
        """Roll back."""
        rolling_back: Awaitable[None] = self._transaction.rollback()
        return rolling_back

    async def _say_and_commit(self) -> None:
        try:
            await self._driver.execute(f"{self.last_words}; COMMIT")
        except Exception:
            if not self._driver.is_closed() and self._driver.is_in_transaction():
                await self._transaction.rollback()
            raise
        finally:
            self._driver._top_xact = None  # noqa: SLF001 - as asyncpg's own commit does

    async def _refuse(self) -> None:
        await self._transaction.rollback()
        refuse()


class Commits:
    """Sees to the commits of connections whose transaction cannot be guarded itself. One listener an engine: one a
    transaction would take 30 us each. (Even that one has SQLAlchemy do more for each connection that it hands out.)"""

    def __init__(self) -> None:
        self._guards: WeakKeyDictionary[Connection, MayCommit] = WeakKeyDictionary()
        self._engines: set[Engine] = set()

    def watch(self, connection: Connection, may_commit: MayCommit) -> None:
        """Refuse each commit on this connection that may not be."""
        self._guards[connection] = may_commit
        if connection.engine not in self._engines:
            self._engines.add(connection.engine)
            event.listen(connection.engine, "commit", self._commit)

    def _commit(self, connection: Connection) -> None:
        may_commit = self._guards.get(connection)
        if may_commit is not None and not may_commit():
            # SQLAlchemy takes a commit that raised for done, and would give the open transaction back to the pool.
            connection.connection.rollback()
            refuse()

    def close(self) -> None:
        """Watch nothing any more."""
        while self._engines:
            event.remove(self._engines.pop(), "commit", self._commit)


def refuse() -> NoReturn:
    """Say that nothing was committed, and what to do instead."""
    raise UnfencedCommit("commit through session.commit(), which checks the lease; nothing was committed")
