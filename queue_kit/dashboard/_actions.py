"""The changes that the dashboard makes. The guard has checked that they were meant; each leaves a line in the log."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from queue_kit.dashboard._access import access_of
from queue_kit.dashboard._forms import form_of
from queue_kit.dashboard._guard import audit
from queue_kit.dashboard._pages import number_of
from queue_kit.dashboard._pool import Pool
from queue_kit.dashboard._render import Renderer
from queue_kit.errors import JobConflict, JobNotFound
from queue_kit.job import JobState, printable
from queue_kit.operate import cancel_job, retry_job


class Actions:
    """Everything that is changed."""

    def __init__(self, pool: Pool, renderer: Renderer) -> None:
        self._pool = pool
        self._renderer = renderer

    async def change_job(self, request: Request) -> Response:
        """Retry, cancel or run one job."""
        form_of(request)
        action = _JOB_ACTIONS.get(request.path_params["action"])
        job_id = number_of(request.path_params["job_id"])
        if action is None or job_id is None:
            raise HTTPException(404, "There is no such action.")
        try:
            async with self._pool.writing() as session:
                notice = await action(session, job_id)
        except JobNotFound:
            raise HTTPException(404, "There is no job with this id any more.") from None
        except JobConflict as conflict:
            raise HTTPException(409, str(conflict)) from None
        record(request, notice, job_id=job_id)
        return _see(f"../{job_id}?notice={notice}")


async def _cancel(session: AsyncSession, job_id: int) -> str:
    state = await cancel_job(session, job_id)
    if state is JobState.cancelled:
        return "cancelled"
    return "asked" if state is JobState.running else "complete"


async def _retry(session: AsyncSession, job_id: int) -> str:
    await retry_job(session, job_id)
    return "retried"


_JOB_ACTIONS: dict[str, Callable[[AsyncSession, int], Awaitable[str]]] = {"cancel": _cancel, "retry": _retry}


def record(request: Request, what: str, **fields: Any) -> None:
    """The line in the log: who did what to what. `extra` has the same as fields."""
    access = access_of(request)
    who = printable(access.who) if access else ""
    subject = " ".join(f"{key}={printable(str(value))}" for key, value in fields.items())
    audit.info("%s: %s by %s", what, subject, who, extra={"who": who, "what": what, **fields})


def _see(location: str) -> Response:
    # Relative, so that it holds under any prefix and behind any proxy.
    return Response(status_code=303, headers={"location": location})
