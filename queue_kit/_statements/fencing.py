"""One job inside its handler's own transaction: its lease, its ending and its unique key, each behind the fence that
names one run of it. Beside the batches of `settling`, these wait for a locked row instead of leaving it for later.
"""

from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Executable, Integer, UpdateBase, Uuid, bindparam, delete, null, update

from queue_kit._dialect.clock import time_from_now
from queue_kit._dialect.columns import BIGINT
from queue_kit._dialect.plans import where_also
from queue_kit._statements.vocabulary import COMPLETION, IS_READY, JOB, number_parameter
from queue_kit.models import JOBS


def _fence() -> tuple[ColumnElement[bool], ...]:
    """By its id: where the statistics are of an empty queue, PostgreSQL would look for it among all that waits."""
    worker_id, claim_no = bindparam("worker", type_=Uuid()), bindparam("claim", type_=Integer())
    ours = where_also(IS_READY, JOB.worker_id == worker_id, JOB.claim_no == claim_no)
    return JOB.id == bindparam("job_id", type_=BIGINT), ours


def fence(job_id: int, worker_id: UUID, claim_no: int) -> dict[str, Any]:
    """The parameters that name one run of one job."""
    return {"job_id": job_id, "worker": worker_id, "claim": claim_no}


@cache
def checkpoint_one() -> Executable:
    """Renew the lease of one job inside its handler's transaction. Parameters: the fence, `lease`."""
    return update(JOBS).where(*_fence()).values(lease_until=time_from_now(number_parameter("lease")))


@cache
def complete_one() -> UpdateBase:
    """Finish one job inside its handler's transaction. Parameters: the fence."""
    return update(JOBS).where(*_fence()).values(COMPLETION)


@cache
def remove_one() -> UpdateBase:
    """Delete one job inside its handler's transaction. Parameters: the fence."""
    return delete(JOBS).where(*_fence())


@cache
def hand_over_key() -> Executable:
    """Give up the unique key of a job that we run. Parameters: the fence."""
    return update(JOBS).where(*_fence()).values(unique_key=null())
