"""Job queues under test, one a file, each in the best configuration that its documentation gives.

A queue adds jobs whose payload is `{"i": number}`, and its worker hands each payload's number to `note`. Nothing here
measures anything.
"""

import contextlib
import importlib
import importlib.metadata
import os
import sqlite3
from collections.abc import Callable
from typing import Any, ClassVar

import asyncpg

Note = Callable[[int], None]
Options = dict[str, Any]
"""Keyword arguments of a queue."""


class Queue:
    """A queue on the database `url`: PostgreSQL as `postgresql://...`, or the path of an SQLite file."""

    packages: ClassVar[tuple[str, ...]] = ()
    setting: ClassVar[str] = ""
    uvloop: bool = False
    unfinished: ClassVar[str] = ""
    """SQL that counts the jobs that are due and not yet completed."""
    needs: ClassVar[str] = ""
    """A variable of the environment without which it cannot be measured."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._watching: asyncpg.Connection | None = None

    async def install(self) -> None:
        """Make its tables."""

    async def discard(self) -> None:
        """Remove what does not go with its database."""

    async def open(self) -> None:
        """Connect, to add jobs."""

    async def close(self) -> None:
        """Disconnect."""

    async def add(self, number: int) -> None:
        """Add one job, committed."""
        raise NotImplementedError

    async def add_many(self, numbers: range) -> None:
        """Add jobs the fastest way that its API has."""
        for number in numbers:
            await self.add(number)

    async def work(self, note: Note) -> None:
        """Work until the process is killed."""
        raise NotImplementedError

    async def remaining(self) -> int:
        """How many jobs are not completed yet, as another connection sees it."""
        return await self.count(self.unfinished)

    async def completed(self) -> int | None:
        """How many completed jobs are kept; `None` when the queue deletes them."""
        return None

    async def count(self, sql: str) -> int:
        """A number out of the database, over a connection that is kept."""
        if not self.url.startswith("postgresql"):
            with contextlib.closing(sqlite3.connect(self.url)) as file:
                return int(file.execute(sql).fetchone()[0])
        if self._watching is None:
            self._watching = await asyncpg.connect(self.url)
        return int(await self._watching.fetchval(sql))

    async def look_away(self) -> None:
        """Close the connection that counts."""
        if self._watching is not None:
            await self._watching.close()
            self._watching = None


def load(name: str, url: str, options: Options) -> Queue:
    """The queue of this name. Raises `ImportError` when it is not installed."""
    queue: Queue = kind(name)(url, **options)
    return queue


def kind(name: str) -> Any:
    """The class of the queue of this name."""
    return importlib.import_module(f"benchmarks.peers.{name}").QUEUE


def missing(name: str) -> str:
    """Why a queue cannot be measured here; empty when it can."""
    try:
        versions(name)
    except ImportError:
        return "not installed"
    needs = kind(name).needs
    return f"no {needs}" if needs and needs not in os.environ else ""


def versions(name: str) -> dict[str, str]:
    """The versions of what a queue is made of."""
    return {package: importlib.metadata.version(package) for package in kind(name).packages}
