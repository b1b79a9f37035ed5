"""What lies between a worker and the database: each statement travels there and back, and on the way it may be slow,
fail before it took effect, fail after it (the reply is lost), or hang until its sender gives up.

The weather decides: how often single statements fail, and when the database is away, for all workers or for one.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Self, TypeVar

from sqlalchemy import Executable
from sqlalchemy.exc import DBAPIError

from tests.simulation.database import Database, Parameters
from tests.simulation.loop import Process, VirtualLoop, outside

T = TypeVar("T")
Note = Callable[..., None]


class State(Enum):
    """How the database can be reached."""

    up = auto()
    refused = auto()
    silent = auto()
    read_only = auto()


class Fate(Enum):
    """What happens to one statement."""

    well = auto()
    slow = auto()
    fails_before = auto()
    fails_after = auto()
    never_arrives = auto()
    never_answered = auto()


LONGEST_WAY = 1.5
"""Of the latency, what a message without trouble takes at most."""

TROUBLE = tuple(fate for fate in Fate if fate is not Fate.well)


@dataclass(frozen=True, slots=True)
class Outage:
    """The database is away for a while, for one process or for all."""

    begins: float
    ends: float
    state: State
    process: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """One kind of statement always fails for a while, though the others go well."""

    begins: float
    ends: float
    statement: str
    sqlstate: str


@dataclass(slots=True)
class Weather:
    """What the network and the server are like. `fails` is the share of statements that meet trouble."""

    fails: float
    latency: float
    outages: Sequence[Outage] = ()
    refusals: Sequence[Refusal] = ()

    def state(self, process: int, now: float) -> State:
        for outage in self.outages:
            if outage.begins <= now < outage.ends and outage.process in (None, process):
                return outage.state
        return State.up

    def refusal(self, statement: str, now: float) -> str | None:
        for refusal in self.refusals:
            if refusal.begins <= now < refusal.ends and refusal.statement == statement:
                return refusal.sqlstate
        return None


class _Refused(Exception):
    """What a driver raises."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(f"the server said {sqlstate}")
        self.sqlstate = sqlstate


def database_error(sqlstate: str) -> DBAPIError:
    """What SQLAlchemy raises."""
    return DBAPIError("a statement", {}, _Refused(sqlstate))


_ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: ConnectionResetError("connection reset by peer"),
    lambda: ConnectionRefusedError("connection refused"),
    lambda: TimeoutError("timed out"),
    lambda: database_error("57P01"),
    lambda: database_error("40P01"),
    lambda: database_error("53300"),
)
"""All of them pass by themselves."""


class Wire:
    """One worker's way to the database; stands where the store has its engine."""

    def __init__(
        self,
        loop: VirtualLoop,
        database: Database,
        process: Process,
        number: int,
        weather: Weather,
        chance: random.Random,
        note: Note,
    ) -> None:
        self._loop = loop
        self._database = database
        self._process = process
        self._number = number
        self._weather = weather
        self._chance = chance
        self._note = note
        self._sent: list[tuple[float, str]] = []

    @property
    def most_in_a_second(self) -> int:
        """How many statements were sent in the busiest second."""
        return max(Counter(int(at) for at, _ in self._sent).values(), default=0)

    def sent_since(self, when: float) -> int:
        """How many statements were sent since then, but for those that write the history once a minute."""
        return sum(at >= when and not word.endswith("history") for at, word in self._sent)

    def connect(self) -> "_Connection":
        return _Connection(self)

    begin = connect

    async def listen(self, heard: Callable[[], None], broken: Callable[[], None]) -> None:
        """Have `heard` called for each notification that arrives, until `broken` is."""

        def notify() -> None:
            if self._state is State.up and self._chance.random() >= self._weather.fails:
                self._process.call_later(self._weather.latency, heard)
            else:
                del self._database.listeners[self]
                self._process.call_later(self._weather.latency, broken)

        await self.send("listen", lambda: self._database.listeners.update({self: notify}))

    async def execute(self, statement: Executable, parameters: Parameters) -> Sequence[Any]:
        """Send one statement of the worker's own."""
        word = self._database.words[statement]
        return await self.send(
            word,
            lambda: self._database.execute(statement, parameters),
            reads=statement in self._database.reads,
        )

    async def send(self, word: str, apply: Callable[[], T], *, reads: bool = False) -> T:
        """Have `apply` called in the database, and wait for what it returns."""
        self._sent.append((self._loop.time(), word))
        fate = self._fate()
        self._note(self._process.name, "send", word, *([] if fate is Fate.well else [fate.name]))
        reply: asyncio.Future[T] = self._loop.create_future()
        goes_on = self._chance.random() < 0.5  # what was sent may arrive though its sender gave up
        self._later(self._travel(fate), self._arrive, reply, word, apply, reads, fate, goes_on)
        try:
            return await reply
        except asyncio.CancelledError:
            if self._chance.random() < self._weather.fails:  # a driver takes a while to cancel, when nobody answers
                await asyncio.sleep(self._chance.uniform(0.0, 2.0))
            raise

    def _fate(self) -> Fate:
        if self._chance.random() >= self._weather.fails:
            return Fate.well
        return self._chance.choice(TROUBLE)

    def _travel(self, fate: Fate) -> float:
        seconds = self._weather.latency * self._chance.uniform(0.5, LONGEST_WAY)
        return seconds + (self._chance.uniform(0.1, 3.0) if fate is Fate.slow else 0.0)

    def _later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self._loop.call_at(self._loop.time() + seconds, call, *args, context=outside())

    @property
    def _state(self) -> State:
        return self._weather.state(self._number, self._loop.time())

    def _arrive(
        self, reply: "asyncio.Future[T]", word: str, apply: Callable[[], T], reads: bool, fate: Fate, goes_on: bool
    ) -> None:
        if reply.cancelled() and not goes_on:
            return
        state, sqlstate = self._state, self._weather.refusal(word, self._loop.time())
        if state is State.silent or fate is Fate.never_arrives:
            return
        error: Exception | None = None
        if state is State.refused:
            error = ConnectionRefusedError("connection refused")
        elif state is State.read_only and not reads:
            error = database_error("25006")
        elif sqlstate is not None:
            error = database_error(sqlstate)
        elif fate is Fate.fails_before:
            error = self._chance.choice(_ERRORS)()
        if error is not None:
            self._later(self._travel(fate), self._answer, reply, word, None, error)
            return
        try:
            result = apply()
        except Exception as refused:
            self._later(self._travel(fate), self._answer, reply, word, None, refused)
            return
        if fate is Fate.never_answered:
            return
        error = self._chance.choice(_ERRORS)() if fate is Fate.fails_after else None
        self._later(self._travel(fate), self._answer, reply, word, result, error)

    def _answer(self, reply: "asyncio.Future[Any]", word: str, result: object, error: Exception | None) -> None:
        if reply.done() or self._state is State.silent:
            return
        if self._state is State.refused and error is None:
            error = ConnectionResetError("connection reset by peer")
        if error is None:
            reply.set_result(result)
        else:
            self._note(self._process.name, "error", word, type(error).__name__)
            reply.set_exception(error)


class SimulatedListener:
    """Stands for the connection that a worker listens on: it breaks now and then, and is deaf until it is back."""

    def __init__(
        self,
        wire: Wire,
        *,
        on_job: Callable[[], None],
        on_cancel: Callable[[], None],
        on_change: Callable[[str], None],
    ) -> None:
        self._wire = wire
        self._on_job = on_job
        self._on_change = on_change
        self._broken = asyncio.Event()

    async def serve(self) -> None:
        """Listen for as long as this is awaited."""
        while True:
            self._broken.clear()
            with contextlib.suppress(ConnectionError, TimeoutError, DBAPIError):
                async with asyncio.timeout(5.0):
                    await self._wire.listen(self._on_job, self._broken.set)
                self._on_change("listening")
                self._on_job()  # what was sent before was not heard
                await self._broken.wait()
                self._on_change("polling")
            await asyncio.sleep(0.5)


class _Connection:
    """A connection of the worker's private pool, as far as the store uses one."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute(self, statement: Executable, parameters: Parameters) -> "_Result":
        return _Result(await self._wire.execute(statement, parameters))


class _Result:
    returns_rows = True

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def all(self) -> Sequence[Any]:
        return self._rows
