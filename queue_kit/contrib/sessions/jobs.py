"""The session store's jobs: factories of ordinary handlers, and both of them at once.

jobs.include(session_jobs(store))

queue_kit.session_store.cleanup                       0 2 * * *
queue_kit.session_store.potential_leaked_session      no cron: a refresh adds it
"""

import json
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._handler import HandlerFunction
from queue_kit._payload import payload_for
from queue_kit.contrib.sessions._cleanup import BATCH, Limits
from queue_kit.contrib.sessions.leaks import LEAKED_SESSION
from queue_kit.contrib.sessions.session import LeakReport
from queue_kit.contrib.sessions.store import SessionStore
from queue_kit.event import Event
from queue_kit.handlers import Handlers
from queue_kit.job import Job

CLEANUP = "queue_kit.session_store.cleanup"


def session_jobs(
    store: SessionStore[Any],
    *,
    max_revoked_age_in_days: float = 14,
    max_session_lifetime_in_days: float | None = None,
    use_dump: bool = False,
) -> Handlers:
    """Both jobs under their names. The arguments are those of the two factories.

    >>> jobs.include(session_jobs(store))  # doctest: +SKIP
    """
    handlers = Handlers()
    cleanup = job_session_store_cleanup(store, max_revoked_age_in_days, max_session_lifetime_in_days)
    handlers.add(CLEANUP, cleanup, timeout=3_600)
    handlers.add(LEAKED_SESSION, job_session_store_process_leaked_session(use_dump=use_dump))
    return handlers


def job_session_store_cleanup(
    store: SessionStore[Any],
    max_revoked_age_in_days: float = 14,
    max_session_lifetime_in_days: float | None = None,
) -> HandlerFunction[dict[str, Any]]:
    """A handler that deletes what has ended, as `SessionStore.cleanup` does, in batches, each committed by itself.

    Register it as `queue_kit.session_store.cleanup`, with the cron line `0 2 * * *`. Raises `ConfigurationError` for a
    number of days that is none.

    >>> cleanup = job_session_store_cleanup(store, max_revoked_age_in_days=30)  # doctest: +SKIP
    """
    Limits(max_revoked_age_in_days, max_session_lifetime_in_days, BATCH)

    async def cleanup(event: Event, session: AsyncSession, _job: Job[dict[str, Any]]) -> None:
        deleted, some = 0, BATCH
        while some == BATCH:
            event.signal.raise_if_aborted()
            some = await store.cleanup(session, max_revoked_age_in_days, max_session_lifetime_in_days, limit=BATCH)
            await session.commit()
            deleted += some
        event.log.info("deleted %d pairs of tokens", deleted)

    return cleanup


def job_session_store_process_leaked_session(*, use_dump: bool = False) -> HandlerFunction[LeakReport]:
    """A handler that logs the report of a session that was revoked because a refresh token came again, as a warning:
    in words, or with `use_dump` as one JSON text. Either has the `LeakReport` in its `extra`, as `leaked_session`.

    Register it as `queue_kit.session_store.potential_leaked_session`; to do more, register a handler of your own that
    takes a `Job[LeakReport]`.

    >>> report = job_session_store_process_leaked_session(use_dump=True)
    """
    as_json = payload_for(LeakReport)

    async def process(event: Event, _session: AsyncSession, job: Job[LeakReport]) -> None:
        report = job.data
        extra = {"leaked_session": report}
        if use_dump:
            event.log.warning("%s", json.dumps(as_json.encode(report)), extra=extra)
            return
        event.log.warning(
            "session %s was revoked at %s: a refresh token of it came again; created %s, changed %s, last refreshed %s",
            report.session_id,
            report.revoked_at.isoformat(),
            report.created_at.isoformat(),
            report.updated_at.isoformat(),
            ", ".join(at.isoformat() for at in report.refreshed_at) or "never",
            extra=extra,
        )

    return process
