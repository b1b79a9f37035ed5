"""One job inside its handler's own transaction: its lease, its ending and its unique key, each behind the fence that
names one run of it. Beside the batches of `settling`, these wait for a locked row instead of leaving it for later.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Executable,
    Integer,
    Update,
    Uuid,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql.base import PGDialect

from queue_kit._dialect.clock import time_from_now
from queue_kit._dialect.columns import BIGINT
from queue_kit._statements.vocabulary import COMPLETION, IS_READY, JOB, number_parameter
from queue_kit.models import JOBS


def _fence() -> tuple[ColumnElement[bool], ...]:
    return (
        JOB.id == bindparam("job_id", type_=BIGINT),
        JOB.worker_id == bindparam("worker", type_=Uuid()),
        JOB.claim_no == bindparam("claim", type_=Integer()),
        IS_READY,
    )


def fence(job_id: int, worker_id: UUID, claim_no: int) -> dict[str, Any]:
    """The parameters that name one run of one job."""
    return {"job_id": job_id, "worker": worker_id, "claim": claim_no}


@cache
def checkpoint_one() -> Executable:
    """Renew the lease of one job inside its handler's transaction. Parameters: the fence, `lease`."""
    return update(JOBS).where(*_fence()).values(lease_until=time_from_now(number_parameter("lease")))


@cache
def complete_one() -> Update:
    """Finish one job inside its handler's transaction. Parameters: the fence."""
    return update(JOBS).where(*_fence()).values(COMPLETION)


@cache
def remove_one() -> Delete:
    """Delete one job inside its handler's transaction. Parameters: the fence."""
    return delete(JOBS).where(*_fence())


NOT_OURS = "queue_kit: the job is not ours any more"
"""What the error says of words that found no row."""


def as_words(ending: Update | Delete, fence: Mapping[str, Any]) -> str:
    """An ending with its fence as a text for PostgreSQL, to be sent together with COMMIT: where it finds no row it
    fails, with `NOT_OURS`. Two numbers and a UUID are put into it, nothing that anybody wrote."""
    return _refusing(ending) % {**fence, "worker": f"'{fence['worker']}'"}


@cache
def _refusing(ending: Update | Delete) -> str:
    ended = ending.returning(JOB.id).cte("ended")
    words = func.concat(literal_column(f"'{NOT_OURS} '"), func.count())  # a constant would fail when it is planned
    refusal = select(cast(words, Integer)).select_from(ended).having(func.count() != literal_column("1"))
    compiled = refusal.compile(dialect=PGDialect())  # type: ignore[no-untyped-call]
    return compiled.string % {
        name: f"%({name})s" if value is None else value for name, value in compiled.params.items()
    }


@cache
def hand_over_key() -> Executable:
    """Give up the unique key of a job that we run. Parameters: the fence."""
    return update(JOBS).where(*_fence()).values(unique_key=null())
