"""Commits that pass a handler's session by: each one of its connection is shown to the guard of that session."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event


class Commits:
    """Sees to the commits of handlers' connections. One listener an engine: one a transaction would take 30 us each."""

    def __init__(self) -> None:
        self._guards: WeakKeyDictionary[Connection, Callable[[Connection], None]] = WeakKeyDictionary()
        self._engines: set[Engine] = set()

    def watch(self, connection: Connection, guard: Callable[[Connection], None]) -> None:
        """Have `guard` called before each commit on this connection."""
        self._guards[connection] = guard
        if connection.engine not in self._engines:
            self._engines.add(connection.engine)
            event.listen(connection.engine, "commit", self._commit)

    def _commit(self, connection: Connection) -> None:
        if (guard := self._guards.get(connection)) is not None:
            guard(connection)

    def close(self) -> None:
        """Watch nothing any more."""
        while self._engines:
            event.remove(self._engines.pop(), "commit", self._commit)
