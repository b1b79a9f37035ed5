"""What happens when a refresh token comes again: the session ends, and a job tells somebody. Both or neither."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit._payload import payload_for
from queue_kit.contrib.sessions import _statements
from queue_kit.contrib.sessions.session import LeakReport
from queue_kit.enqueue import add_jobs
from queue_kit.job import NewJob

LEAKED_SESSION = "queue_kit.session_store.potential_leaked_session"
"""The name of the job."""


async def report_leak(session: AsyncSession, session_id: UUID) -> None:
    """Revoke a session and add the job that reports it, in the caller's transaction. A session that somebody else
    revoked a moment ago is not reported again."""
    revoked = (await session.execute(_statements.revoke_session(), {"session": session_id})).first()
    if revoked is None:
        return
    newest_first = (await session.scalars(_statements.last_rotations(), {"session": session_id})).all()
    report = LeakReport(
        session_id, revoked.created_at, revoked.updated_at, revoked.revoked_at, tuple(reversed(newest_first))
    )
    job = NewJob(
        LEAKED_SESSION,
        report,
        unique_key=f"{LEAKED_SESSION}:{session_id}",
        encode=payload_for(LeakReport).encode,
    )
    await add_jobs(session, [job])
