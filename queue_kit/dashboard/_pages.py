"""The pages: each reads what it shows in one short transaction, and leaves the rest to its template."""

import re
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from queue_kit.dashboard._access import Access, access_of
from queue_kit.dashboard._payload import failures_of, payload_of, trace_of
from queue_kit.dashboard._pool import Pool
from queue_kit.dashboard._privacy import Privacy
from queue_kit.dashboard._render import Renderer, query
from queue_kit.job import JobState
from queue_kit.models import JobRow
from queue_kit.operate import MAX_ID, get_job, list_jobs, queue_insights

PAGE = 50
"""Jobs on a page."""


class Pages:
    """Everything that is read."""

    def __init__(self, pool: Pool, renderer: Renderer, privacy: Privacy) -> None:
        self._pool = pool
        self._renderer = renderer
        self._privacy = privacy

    async def overview(self, request: Request) -> Response:
        """How the queue is."""
        async with self._pool.reading() as session:
            insights = await queue_insights(session)
        return self._renderer.page(request, "overview.html", insights=insights)

    async def names(self, request: Request) -> Response:
        """The names of live and failed jobs, and who runs them."""
        async with self._pool.reading() as session:
            insights = await queue_insights(session)
        return self._renderer.page(request, "names.html", insights=insights)

    async def jobs(self, request: Request) -> Response:
        """Jobs, newest first, with filters."""
        given = request.query_params
        state, name, after = given.get("state", ""), given.get("name", "").strip(), given.get("after", "")
        if state and state not in JobState.__members__:
            raise HTTPException(400, "There is no such state.")
        if after and number_of(after) is None:
            raise HTTPException(400, "There is no such page.")
        async with self._pool.reading() as session:
            rows = await list_jobs(
                session,
                state=JobState(state) if state else None,
                name=name or None,
                limit=PAGE + 1,
                after=number_of(after),
            )
        filters = {"state": state, "name": name}
        return self._renderer.page(
            request,
            "jobs.html",
            rows=rows[:PAGE],
            older=rows[PAGE - 1].id if len(rows) > PAGE else None,
            filters=filters,
            after=after,
            states=list(JobState),
            hides=self._hides(request),
        )

    async def job(self, request: Request) -> Response:
        """One job."""
        row = await self._row(request)
        is_hidden = self._hides(request)(row.name)
        return self._renderer.page(
            request,
            "job.html",
            job=row,
            payload=payload_of(row.data, self._privacy.redacted(row.data), is_hidden=is_hidden),
            failures=failures_of(row.errors, is_hidden=is_hidden),
            trace=trace_of(row.trace_context),
        )

    async def _row(self, request: Request) -> JobRow:
        job_id = number_of(request.path_params["job_id"])
        if job_id is not None:
            async with self._pool.reading() as session:
                row = await get_job(session, job_id)
            if row is not None:
                return row
        raise HTTPException(404, "There is no job with this id. Finished jobs are deleted after some days.")

    def _hides(self, request: Request) -> Any:
        access = access_of(request)
        assert isinstance(access, Access)
        return lambda name: self._privacy.hides(name, access)


def number_of(text: str) -> int | None:
    """An id, as it was written; `None` for what can be none."""
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) and int(text) <= MAX_ID else None
