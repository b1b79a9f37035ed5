"""The pages: each reads what it shows in short transactions, and leaves the rest to its template."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from queue_kit._dialect.columns import nearest_instant
from queue_kit._reach import MAX_ID
from queue_kit._statements import looking
from queue_kit.cron_jobs import cron_standing, list_cron_jobs
from queue_kit.dashboard._access import admitted
from queue_kit.dashboard._asking import choice, id_of, words
from queue_kit.dashboard._charts import runs_chart, times_chart
from queue_kit.dashboard._concerns import concerns
from queue_kit.dashboard._many import Many
from queue_kit.dashboard._payload import failures_of, payload_of, trace_of
from queue_kit.dashboard._pool import Pool
from queue_kit.dashboard._privacy import Privacy
from queue_kit.dashboard._reading import is_there, line_of, whole
from queue_kit.dashboard._render import Renderer, see
from queue_kit.dashboard._shared import Shared
from queue_kit.failures import FailureGroup, grouped, newest_failures
from queue_kit.fleet import list_workers
from queue_kit.history import throughput, throughput_by_name
from queue_kit.job import JobState
from queue_kit.operate import NameInsights, foremost, list_job_texts, queue_insights

T = TypeVar("T")

PAGE = 50
"""Jobs on a page."""

LOOKED_BACK = 50_000
"""Jobs that are looked through for those of a name: some 20 ms. An older page looks further."""

GROUPS = 20
"""Failures on the overview."""

NAMES = 200
"""Names on a page, and those that a form offers."""

PERIODS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
AGES = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}


@dataclass(frozen=True, slots=True)
class Failures:
    """The failed jobs by what went wrong, and how many of the newest ones failed in the last hour. The history would
    know it a minute late, and of those that were queued again, too."""

    groups: Sequence[FailureGroup]
    lately: int


class Pages:
    """Everything that is read."""

    def __init__(self, pool: Pool, renderer: Renderer, privacy: Privacy) -> None:
        self._pool = pool
        self._renderer = renderer
        self._privacy = privacy
        self._insights = self._shared(queue_insights)
        self._workers = self._shared(list_workers)
        self._cron = self._shared(cron_standing)
        self._failures = self._shared(_failures)
        self._by_name = self._shared(throughput_by_name)
        self._throughput = {name: self._throughput_of(last) for name, last in PERIODS.items()}

    def _throughput_of(self, last: timedelta) -> Shared[Any]:
        return self._shared(lambda session: throughput(session, last=last))

    def _shared(self, read: Callable[[AsyncSession], Awaitable[T]]) -> Shared[T]:
        async def once() -> T:
            async with self._pool.reading() as session:
                return await read(session)

        return Shared(once)

    async def overview(self, request: Request) -> Response:
        """How the queue is."""
        period = request.query_params.get("period", "hour")
        if period not in PERIODS:
            period = "hour"
        insights, workers = await self._insights.get(), await self._workers.get()
        points = await self._throughput[period].get()
        failures = await self._failures.get()
        return self._renderer.page(
            request,
            "overview.html",
            insights=insights,
            workers=workers,
            groups=failures.groups,
            points=points,
            runs=runs_chart(points),
            times=times_chart(points),
            completed=sum(point.completed for point in points),
            concerns=concerns(insights, await self._cron.get(), len(workers), failures.lately),
            period=period,
            hides=self._hides(request),
        )

    async def names(self, request: Request) -> Response:
        """The names of jobs that live, have failed or ran in the last hour, and how many workers know each."""
        insights, workers, ran = await self._insights.get(), await self._workers.get(), await self._by_name.get()
        nothing, names = NameInsights(), insights.by_name.keys() | ran.keys()
        rows = [
            (name, insights.by_name.get(name, nothing), ran.get(name), sum(name in each.names for each in workers))
            for name in foremost(names, insights.by_name, NAMES)
        ]
        return self._renderer.page(
            request, "names.html", rows=rows, more=len(names) - len(rows), unhandled=insights.unhandled_names
        )

    async def workers(self, request: Request) -> Response:
        """The workers that are alive, and what they run."""
        return self._renderer.page(request, "workers.html", workers=await self._workers.get())

    async def cron(self, request: Request) -> Response:
        """The cron entries."""
        async with self._pool.reading() as session:
            entries = await list_cron_jobs(session)
        insights = await self._insights.get()
        return self._renderer.page(request, "cron.html", entries=entries, unhandled=insights.unhandled_names)

    async def jobs(self, request: Request) -> Response:
        """Jobs, newest first, with filters; a job, when an id is looked for."""
        given = request.query_params
        state, age = choice(given, "state", JobState.__members__), choice(given, "age", AGES)
        name, looked_for, after = words(given, "name"), words(given, "q"), id_of(given.get("after", ""))
        job_id, back_to = id_of(looked_for), 0
        async with self._pool.reading() as session:
            if job_id is not None and await is_there(session, job_id):
                return see(f"jobs/{job_id}")
            if name and state in ("", JobState.completed):
                # Nothing finds the finished jobs of a name but reading back through all of them.
                back_to = await _far_enough(session, after)
            rows = await list_job_texts(
                session,
                looking.job_heads(),
                state=JobState(state) if state else None,
                words={"name": name or None, "unique_key": looked_for or None},
                created=(datetime.now(UTC) - AGES[age] if age else None, None),
                limit=PAGE + 1,
                after=after,
                back_to=back_to,
            )
        hides = self._hides(request)
        return self._renderer.page(
            request,
            "jobs.html",
            rows=[line_of(row, is_hidden=hides(row.name)) for row in rows[:PAGE]],
            older=rows[PAGE - 1].id if len(rows) > PAGE else None,
            back_to=back_to if len(rows) <= PAGE else 0,
            filters={"q": looked_for, "name": name, "state": state, "age": age},
            after=after,
            names=await self._offered(),
        )

    async def _offered(self) -> list[str]:
        by_name = (await self._insights.get()).by_name
        return foremost(by_name, by_name, NAMES)

    async def job(self, request: Request) -> Response:
        """One job."""
        job_id = id_of(request.path_params["job_id"])
        job = None
        if job_id is not None:
            async with self._pool.reading() as session:
                job = await whole(session, job_id)
        if job is None:
            raise HTTPException(404, "There is no job with this id. Finished jobs are deleted after some days.")
        columns = job.columns
        is_hidden = self._hides(request)(columns["name"])
        holder = [worker.label for worker in await self._workers.get() if worker.id == job.worker_id]
        return self._renderer.page(
            request,
            "job.html",
            job=columns | {"is_complete": job.is_complete},
            problems=job.problems,
            mends=job.mends,
            worker=holder[0] if holder else job.worker_id,
            payload=payload_of(columns["data"], self._privacy.redacted, is_hidden=is_hidden),
            failures=failures_of(columns["errors"], is_hidden=is_hidden),
            trace=trace_of(columns["trace_context"]),
        )

    async def confirm(self, request: Request) -> Response:
        """What a change of many jobs would do, before it is done."""
        many = Many.asked(request.query_params, self._hides(request))
        async with self._pool.reading() as session:
            change = await many.change(session, dry_run=True)
        return self._renderer.page(request, "confirm.html", many=many, change=change)

    def _hides(self, request: Request) -> Callable[[str], bool]:
        return partial(self._privacy.hides, access=admitted(request))


async def _failures(session: AsyncSession) -> Failures:
    rows, more = await newest_failures(session, None)
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    lately = sum(nearest_instant(row.updated_at) > hour_ago for row in rows)
    return Failures(grouped(rows, more=more)[:GROUPS], lately)


async def _far_enough(session: AsyncSession, after: int | None) -> int:
    """The id behind which a list does not look; 0 when there is nothing."""
    first, last = (await session.execute(looking.id_range(), {"after": 0})).one()
    if first is None:
        return 0
    floor = (min(after or MAX_ID, int(last) + 1)) - LOOKED_BACK
    return floor if floor > first else 0
