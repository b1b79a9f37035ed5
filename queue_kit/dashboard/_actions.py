"""The changes that the dashboard makes. The guard has checked that they were meant; each leaves a line in the log."""

import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from queue_kit._reach import is_name
from queue_kit.cron_jobs import pause_cron_job, resume_cron_job, run_cron_job
from queue_kit.dashboard._access import admitted
from queue_kit.dashboard._asking import id_of
from queue_kit.dashboard._forms import form_of
from queue_kit.dashboard._guard import audit
from queue_kit.dashboard._many import CONFIRMED, Many, change_these
from queue_kit.dashboard._pool import Pool
from queue_kit.dashboard._privacy import Privacy
from queue_kit.dashboard._render import proven, see
from queue_kit.errors import CronJobNotFound, InvalidCron, JobConflict, JobNotFound
from queue_kit.job import JobState, printable
from queue_kit.operate import cancel_job, retry_job, run_job_now


class Actions:
    """Everything that is changed."""

    def __init__(self, pool: Pool, privacy: Privacy) -> None:
        self._pool = pool
        self._privacy = privacy

    async def job(self, request: Request) -> Response:
        """Retry, cancel or run one job."""
        form_of(request)
        action, job_id = request.path_params["action"], id_of(request.path_params["job_id"])
        change = _JOB_ACTIONS.get(action)
        if change is None or job_id is None:
            raise HTTPException(404, "There is no such action.")
        try:
            async with self._pool.writing() as session:
                notice = await change(session, job_id)
        except JobNotFound:
            raise HTTPException(404, "There is no job with this id any more.") from None
        except JobConflict as conflict:
            raise HTTPException(409, f"{conflict}.") from None
        _record(request, action, job_id=job_id, result=notice)
        return see(f"../{job_id}", notice=notice)

    async def jobs(self, request: Request) -> Response:
        """Retry or cancel many jobs: those that were picked, or all that fit when the page before has asked."""
        form = {key: values[0] for key, values in form_of(request).items()}
        if "id" in form:
            action = form.get("action", "")
            ids = [job_id for job_id in map(id_of, form_of(request)["id"]) if job_id is not None]
            subject: dict[str, Any] = {"job_ids": ids}
            async with self._pool.writing() as session:
                change = await change_these(session, action, ids)
            back = {key: form.get(key) for key in ("state", "name")}
        elif CONFIRMED not in form:
            raise HTTPException(422, "No job was picked, so nothing was changed.")
        else:
            many = Many.asked(form, partial(self._privacy.hides, access=admitted(request)))
            action = many.action
            # Not the message: it may quote what the jobs carry.
            chosen = {"state": many.state, "job_name": many.name, "error_class": many.error_class, "like": many.like}
            subject = {key: each for key, each in chosen.items() if each is not None}
            async with self._pool.writing() as session:
                change = await many.change(session)
            back = {"state": many.state or ("failed" if action == "retry" else None), "name": many.name}
        _record(request, action, **subject, changed=change.changed, skipped=change.skipped)
        notice = "many_retried" if action == "retry" else "many_cancelled"
        more = "1" if change.more else None
        said = proven(request, notice=notice, count=change.changed, skipped=change.skipped or None, more=more)
        return see("../jobs", **back, **said)

    async def cron(self, request: Request) -> Response:
        """Run, pause or resume a cron entry."""
        action, name = request.path_params["action"], form_of(request).get("name", [""])[0]
        change = _CRON_ACTIONS.get(action)
        if change is None:
            raise HTTPException(404, "There is no such action.")
        try:
            if not is_name(name):
                raise CronJobNotFound(name)
            async with self._pool.writing() as session:
                await change[0](session, name)
        except CronJobNotFound:
            raise HTTPException(404, "There is no cron entry of this name any more.") from None
        except InvalidCron as error:
            raise HTTPException(409, f"{error}.") from None
        _record(request, f"cron {action}", cron_name=name)
        return see("../cron", notice=change[1])


async def _cancel(session: AsyncSession, job_id: int) -> str:
    state = await cancel_job(session, job_id)
    return {JobState.cancelled: "cancelled", JobState.running: "asked"}.get(state, "complete")


async def _retry(session: AsyncSession, job_id: int) -> str:
    await retry_job(session, job_id)
    return "retried"


async def _run(session: AsyncSession, job_id: int) -> str:
    await run_job_now(session, job_id)
    return "run"


_JOB_ACTIONS: dict[str, Callable[[AsyncSession, int], Awaitable[str]]] = {
    "cancel": _cancel,
    "retry": _retry,
    "run": _run,
}
_CRON_ACTIONS: dict[str, tuple[Callable[[AsyncSession, str], Awaitable[object]], str]] = {
    "run": (run_cron_job, "cron_run"),
    "pause": (pause_cron_job, "cron_paused"),
    "resume": (resume_cron_job, "cron_resumed"),
}


def _record(request: Request, action: str, **subject: Any) -> None:
    """The line in the log: who did what to what. `extra` has the same in parts."""
    who = printable(admitted(request).who)
    said = printable(" ".join(f"{key}={value}" for key, value in subject.items()))
    try:
        audit.info("%s by %s: %s", action, who, said, extra={"who": who, "action": action, **subject})
    except Exception:  # noqa: BLE001 - an application's filter or handler; the change is committed, so that is said
        traceback.print_exc()
