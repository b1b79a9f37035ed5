"""Negative controls: mistakes that the torture test must find, put into a process of it and never into the library. A
run in which none of its checks finds one says that the checks are blind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Integer, Uuid, bindparam, literal, select, update

from queue_kit import _session, _wakeup
from queue_kit._dialect.clock import never
from queue_kit._dialect.columns import BIGINT
from queue_kit._dialect.plans import any_row, row_pointer
from queue_kit._statements import claiming, fencing, settling
from queue_kit._statements.vocabulary import COMPLETION
from queue_kit.models import JOBS, READY

ACK_EARLY = "ack-early"
"""The one that is the enqueuer's own: it acknowledges before its commit."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake, the run that shows it, and the checks of which one must find it."""

    patch: Callable[[], None]
    chaos: tuple[str, ...]
    checks: tuple[str, ...]
    seconds: float = 8.0
    poll: float = 1.5


def _unfenced() -> None:
    """The completion names the job and not the claim."""
    ready = JOBS.c.status == literal(READY)
    worker = bindparam("worker", type_=Uuid()).is_not(None)
    batch = settling._fences()
    of_batch = select(row_pointer()).select_from(JOBS).where(JOBS.c.id == batch.id, batch.claim_no.is_not(None), ready)
    locked = of_batch.where(worker).with_for_update(key_share=True, skip_locked=True, of=JOBS)
    many = update(JOBS).where(any_row(locked)).values(COMPLETION).returning(JOBS.c.id)
    claim = bindparam("claim", type_=Integer()).is_not(None)
    job = JOBS.c.id == bindparam("job_id", type_=BIGINT)
    one = update(JOBS).where(job, ready, worker, claim).values(COMPLETION)
    _put(settling, "complete", lambda: many)
    _put(fencing, "complete_one", lambda: one)


def _early() -> None:
    """A claim takes also what another worker's lease still protects."""

    class Lapsed:
        def __getattr__(self, name: str) -> Any:
            return never() if name == "lease_until" else getattr(JOBS.c, name)

    _put(claiming, "JOB", Lapsed())
    claiming.claim()  # built once, so this is what it stays
    _put(claiming, "JOB", JOBS.c)


def _effect_first() -> None:
    """The handler's writes are committed, and then the fence is looked at."""
    commit = _session.HandlerSession.commit

    async def commit_twice(self: _session.HandlerSession, ending: Callable[[Any], None]) -> None:
        connection = await self.session.connection()
        await self.session.flush()
        for statement in ("COMMIT", "BEGIN"):
            await connection.exec_driver_sql(statement)
        await commit(self, ending)

    _put(_session.HandlerSession, "commit", commit_twice)


def _deaf() -> None:
    """A listener that was away does not look for what it missed."""
    _put(_wakeup.Listener, "_everything", lambda _: None)


def _put(owner: object, name: str, value: object) -> None:
    assert hasattr(owner, name), f"{owner!r} has no {name}: the library has changed, so this mutant must"
    setattr(owner, name, value)


MUTANTS = {
    "unfenced": Mutant(_unfenced, ("frozen", "dark"), ("unfenced transitions",), seconds=30.0),
    "early": Mutant(_early, ("kill",), ("two live leases",)),
    "effect-first": Mutant(_effect_first, ("kill",), ("effects outside their fence",)),
    ACK_EARLY: Mutant(lambda: None, ("kill", "term"), ("acknowledged but absent",), seconds=12.0),
    "deaf": Mutant(_deaf, (), ("started late after a lost wake-up",), seconds=3.0, poll=30.0),
}


def mutate(name: str | None) -> None:
    """Make this process one that has the mistake."""
    if name is not None:
        MUTANTS[name].patch()
