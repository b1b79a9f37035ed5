"""Faults of input (I1, I2, I3 and I6 of the fault matrix) that no other test shows: hostile JSON, payloads that are too
large, names of any kind, and rows that plain SQL has written.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from queue_kit import (
    CronJob,
    Handlers,
    InvalidJob,
    JobRow,
    JobState,
    NewJob,
    QueueWorker,
    add_job,
    add_jobs,
    get_job,
    list_jobs,
    register_cron_jobs,
)
from tests.database.clock import far, make_due, occurrence
from tests.database.running import nothing, raw
from tests.support import Recorder, count_jobs, row_of, until

# --- I1: hostile JSON -------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    ["\x00", "\ud800", "\\u0000", "'; --", "🦜\u202e"]
)
NUMBERS = st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.sampled_from([2**63, -(2**63) - 1, -0.0])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
HOSTILE = st.recursive(SCALARS, lambda each: st.lists(each) | st.dictionaries(TEXTS | st.integers(), each))
PAYLOADS = HOSTILE.filter(lambda data: data is not None and type(data) is not int)
"""Nothing stands for the default, and a bare integer has a test of its own."""


async def test_i1_any_payload_is_refused_or_comes_back_exactly(engine):
    loop = asyncio.get_running_loop()

    @settings(max_examples=300, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(PAYLOADS)
    def comes_back(data: Any) -> None:
        stored = asyncio.run_coroutine_threadsafe(through(engine, data), loop).result()
        event("refused" if stored is None else "stored")
        counts[stored is None] += 1
        assert stored is None or same(stored[0], data), stored

    counts = {True: 0, False: 0}
    await asyncio.to_thread(comes_back)
    assert min(counts.values()) >= 20, counts


async def through(engine: AsyncEngine, data: Any) -> tuple[Any] | None:
    """What a payload is in the database, unless it is refused."""
    try:
        job_id = await add_job(engine, "a", data)
    except InvalidJob:
        return None
    return ((await row_of(engine, job_id)).data,)


def same(stored: Any, given: Any) -> bool:
    """Whether a value is what was given. JSON has one kind of number: a whole one may come back as an integer."""
    if isinstance(given, dict):
        return (
            list(map(str, stored)) == [*stored]
            and {*stored} == {*given}
            and all(same(stored[k], given[k]) for k in given)
        )
    if isinstance(given, list):
        return len(stored) == len(given) and all(map(same, stored, given))
    if type(given) is float:
        return type(stored) in (int, float) and float(stored) == given
    return type(stored) is type(given) and stored == given


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
async def test_i1_a_bare_integer_of_64_bits_comes_back_exactly(engine, number):
    assert await through(engine, number) == (number,)


@pytest.mark.parametrize(
    "number", [2**63 + 1, -(2**63) - 1, 10**30 + 1, 10**400], ids=["2^63", "-2^63", "10^30", "10^400"]
)
async def test_i1_a_bare_integer_beyond_64_bits_is_refused_or_comes_back_exactly(engine, number):
    assert await through(engine, number) in (None, (number,))


# --- I2: a payload that is too large ----------------------------------------------------------------------------------

TEN_MB = {"text": "x" * 10_000_000}


async def by_row(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add(JobRow(name="a", data=TEN_MB))


async def by_handler(engine: AsyncEngine) -> None:
    await Handlers().add("a", nothing).add(engine, TEN_MB)


LARGE: dict[str, Callable[[AsyncEngine], Awaitable[Any]]] = {
    "add_job": lambda engine: add_job(engine, "a", TEN_MB),
    "add_jobs": lambda engine: add_jobs(engine, [NewJob("a"), NewJob("a", TEN_MB)]),
    "a row": by_row,
    "a handler": by_handler,
}


@pytest.mark.parametrize("way", LARGE.values(), ids=LARGE.keys())
async def test_i2_a_payload_of_ten_megabytes_is_refused_whichever_way_it_comes(engine, way):
    with pytest.raises(InvalidJob) as refused:
        await way(engine)
    assert refused.value.field == "data"
    assert len(str(refused.value)) < 500
    assert await count_jobs(engine) == 0


async def test_i2_a_payload_of_ten_megabytes_that_plain_sql_wrote_runs_and_stops_nothing(engine):
    sizes = []

    async def measure(event: Any, session: Any, job: Any) -> None:
        sizes.append(len(job.data.get("text", "")))

    await raw(engine, "INSERT INTO queue_kit_job (name, data) VALUES ('a', :data)", data=json.dumps(TEN_MB))
    await add_jobs(engine, [NewJob("a")] * 3)
    counts = await QueueWorker(engine, {"a": measure}, parallel_count=2).drain()
    assert counts["completed"] == 4
    assert sorted(sizes) == [0, 0, 0, 10_000_000]


# --- I3: garbage that plain SQL wrote ---------------------------------------------------------------------------------

GARBAGE = ["'[1, [2]]'", "'1e400'", "'null'", "'\"x\"'", "'true'"]
"""Payloads that are no object."""


async def test_i3_rows_that_plain_sql_wrote_end_one_by_one_and_the_worker_goes_on(engine):
    jobs, hook = Handlers(), Recorder()

    @jobs.handler("typed", max_retry_count=3)
    async def typed(event: Any, session: Any, job: Any) -> None: ...

    values = ", ".join(f"('typed', {data}, {tries})" for data in GARBAGE for tries in (-1, 0, 1))
    async with QueueWorker(engine, jobs, poll_interval=0.05, parallel_count=2, hooks=[hook]) as worker:
        await raw(engine, f"INSERT INTO queue_kit_job (name, data, max_retry_count) VALUES {values}")
        await raw(engine, "INSERT INTO queue_kit_job (name, data) VALUES ('nobody''s', '7')")
        await until(lambda: len(hook.settled) == 3 * len(GARBAGE))
        fine = await add_job(engine, "typed")
        await until(lambda: hook.settled[-1].job.id == fine)
        assert worker.healthy
    assert hook.verdicts == ["failed"] * 3 * len(GARBAGE) + ["completed"]
    assert await count_jobs(engine, JobRow.state == JobState.ready.value, JobRow.claim_no == 0) == 1


# --- I6: names --------------------------------------------------------------------------------------------------------

ODD = [
    'it\'s "quoted" `so`',
    "'; DROP TABLE canary; --",
    "/* x */ $$ $1 :name %s {0}",
    "é" * 200,  # twice as many bytes
    "n" * 200,
    "👩\u200d👩\u200d👧\u200d👦🦜",
    "\u202e\u05e9\u05dc\u05d5\u05dd\u202c \u0645\u0631\u062d\u0628\u0627",  # from right to left
    "e\u0301" + "é",  # combined, and in one
    "a b\tc\nd",
    "%_*?[a-z]\\",
]


async def test_i6_odd_names_are_values_wherever_they_stand(engine):
    await raw(engine, "CREATE TABLE canary (alive INTEGER)")
    await raw(engine, "INSERT INTO canary VALUES (1)")
    jobs, seen, hook = Handlers(), [], Recorder()

    async def note(event: Any, session: Any, job: Any) -> None:
        seen.append((job.name, job.id))

    jobs.add("other", note)
    other = await add_job(engine, "other")
    wanted = []
    for name in ODD:
        jobs.add(name, note)
        job_id = await add_job(engine, name, unique_key=name)
        assert await add_job(engine, name, unique_key=name) is None
        stored = await get_job(engine, job_id)
        assert (stored.name, stored.unique_key) == (name, name)
        wanted.append((name, job_id))
    for name, job_id in wanted:
        assert [row.id for row in await list_jobs(engine, name=name)] == [job_id]
    await register_cron_jobs(engine, [CronJob(name, far()) for name in ODD])
    for name in ODD:
        tick_id, _ = await make_due(engine, name)
        wanted.append((name, tick_id))
    async with QueueWorker(engine, jobs, included_names=ODD, poll_interval=0.05, hooks=[hook]):
        await until(lambda: len(hook.settled) == 2 * len(ODD))
    assert sorted(seen) == sorted(wanted)
    assert [(await occurrence(engine, name)).name for name in ODD] == ODD
    await register_cron_jobs(engine, [])
    assert (await row_of(engine, other)).state is JobState.ready
    assert await raw(engine, "SELECT alive FROM canary") == [(1,)]
