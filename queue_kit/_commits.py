"""Commits that pass a handler's session by: each one of its connection asks the guard of that session first."""

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event

from queue_kit.errors import UnfencedCommit

MayCommit: TypeAlias = Callable[[], bool]
"""Whether a session's connection may commit now."""


class GuardedTransaction:
    """asyncpg's transaction, as SQLAlchemy uses it, whose commit asks first."""

    __slots__ = ("_may_commit", "_transaction")

    def __init__(self, transaction: Any, may_commit: MayCommit) -> None:
        self._transaction = transaction
        self._may_commit = may_commit

    def commit(self) -> Awaitable[None]:
        """Commit, or roll back and raise `UnfencedCommit`."""
        committing: Awaitable[None] = self._transaction.commit() if self._may_commit() else self._refuse()
        return committing

    def rollback(self) -> Awaitable[None]:
        """Roll back."""
        rolling_back: Awaitable[None] = self._transaction.rollback()
        return rolling_back

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
