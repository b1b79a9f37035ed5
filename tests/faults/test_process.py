"""Faults of a worker's process (P1 to P14 of the fault matrix) that no other test shows: it dies at chosen moments, is
frozen, blocked or out of memory, and a handler leaves programs behind it.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import JobRow, JobState, NewJob, QueueWorker, add_job, add_jobs
from tests.crowd import Crowd, Member
from tests.database.running import Gate, nothing, raw, worker_rows
from tests.faults.broken import open_files, processes
from tests.support import MARGIN, Recorder, all_complete, count_jobs, effects, make_effects, row_of, until

LEASE = 2.0
POLL = 0.1


@pytest.fixture
async def workers(engine: AsyncEngine, database_url: str) -> AsyncIterator[Crowd]:
    await make_effects(engine)
    async with processes(database_url) as made:
        yield made


async def complete(engine: AsyncEngine) -> int:
    return await count_jobs(engine, JobRow.is_complete)


# --- P2, P3: it dies at a chosen moment -------------------------------------------------------------------------------


async def test_p2_a_death_before_the_commit_takes_the_effect_along_and_one_after_it_repeats_nothing(
    engine, workers, tmp_path
):
    ledger = tmp_path / "ledger"
    before = await add_job(engine, "write", {"ledger": str(ledger)})
    victim = await workers.start(lease=LEASE, die="before its commit")
    assert await victim.over() == -signal.SIGKILL
    assert (await effects(engine), ledger.read_text().split()) == ([], [str(before)])
    await workers.start(lease=LEASE)
    await all_complete(engine)
    assert (await effects(engine), ledger.read_text().split()) == ([before], [str(before)] * 2)
    assert await counted(engine, before) == (JobState.completed, 2, 1, 0)

    await workers.all[-1].stop()
    after = await add_job(engine, "write", {"ledger": str(ledger)})
    victim = await workers.start(lease=LEASE, die="after its commit")
    assert await victim.over() == -signal.SIGKILL
    await workers.start(lease=LEASE)
    later = await add_job(engine, "write", {"ledger": str(ledger)}, delay=LEASE + POLL)
    await all_complete(engine)
    assert await effects(engine) == [before, after, later]
    assert ledger.read_text().split().count(str(after)) == 1
    assert await counted(engine, after) == (JobState.completed, 1, 0, 0)


async def counted(engine: AsyncEngine, job_id: int) -> tuple[JobState, int, int, int]:
    row = await row_of(engine, job_id)
    return JobState(row.state), row.claim_no, row.lost, row.retry_count


async def test_p3_a_death_between_claim_and_handler_is_counted_once_and_made_good_within_a_lease_and_a_poll(
    engine, workers, tmp_path
):
    until_file = tmp_path / "until"
    job_id = await add_job(engine, "wait", {"until": str(until_file)}, max_retry_count=1)
    victim = await workers.start(lease=LEASE, die="before its handler")
    assert await victim.over() == -signal.SIGKILL
    assert "running" not in {line.split()[0] for line in victim.lines}
    held = await row_of(engine, job_id)
    heir = await workers.start(lease=LEASE)
    await heir.says(f"running {job_id}")
    taken = (await row_of(engine, job_id)).lease_until - timedelta(seconds=LEASE)
    possible = max(held.lease_until, max(row.started_at for row in await worker_rows(engine)))
    until_file.touch()
    await all_complete(engine)
    assert (held.claim_no, held.lost) == (1, 0)
    assert await counted(engine, job_id) == (JobState.completed, 2, 1, 0)
    assert possible <= taken <= possible + timedelta(seconds=POLL + MARGIN)


# --- P4: frozen, for less than a lease --------------------------------------------------------------------------------


async def test_p4_a_freeze_shorter_than_the_lease_changes_nothing(engine, workers, tmp_path):
    lease = 6.0
    until_file = tmp_path / "until"
    frozen = await workers.start(lease=lease)
    await frozen.says("started")
    job_id = await add_job(engine, "wait", {"until": str(until_file)})
    await frozen.says(f"running {job_id}")
    await (other := await workers.start(lease=lease)).says("started")
    await renewed(engine, job_id)
    await frozen.freeze()
    await asyncio.sleep(lease / 2)  # the fault itself
    frozen.thaw()
    await renewed(engine, job_id)
    until_file.touch()
    await frozen.says(f"completed {job_id}")
    assert f"running {job_id}" not in other.lines
    assert await effects(engine) == [job_id]
    assert await counted(engine, job_id) == (JobState.completed, 1, 0, 0)


async def renewed(engine: AsyncEngine, job_id: int) -> None:
    """Wait until a job's lease is extended."""
    before = (await row_of(engine, job_id)).lease_until

    async def later() -> bool:
        return (await row_of(engine, job_id)).lease_until > before

    await until(later)


# --- P9: a signal at any moment of a start ----------------------------------------------------------------------------


async def test_p9_a_signal_at_any_moment_of_a_start_ends_the_process(pg_engine, postgres_url):
    """Up to `run()` it does what it does to any program; from there on it is a graceful stop. Nothing hangs."""
    dice = random.Random(9)

    async def start_and_stop(made: Crowd, delay: float) -> Member:
        process = await made.start(grace=0.1)
        await asyncio.sleep(delay)  # the fault is to hit a moment that nobody chose
        process.send(signal.SIGTERM)
        await process.over()
        return process

    async with processes(postgres_url) as made:
        started = time.monotonic()
        process = await made.start(grace=0.1)
        await process.says("started")
        span = time.monotonic() - started
        await process.stop()
        for _ in range(3):
            ended = await asyncio.gather(*(start_and_stop(made, dice.uniform(0, 1.2 * span)) for _ in range(4)))
            for each in ended:
                assert each.status == (0 if "ready" in each.lines else -signal.SIGTERM), (each.lines, each.log)
    assert await worker_rows(pg_engine) == []


# --- P10: a blocked event loop ----------------------------------------------------------------------------------------


async def test_p10_a_handler_that_blocks_the_loop_loses_its_worker_all_leases_and_each_job_commits_once(
    engine, workers, tmp_path
):
    until_file, marker, blocked = tmp_path / "until", tmp_path / "marker", tmp_path / "blocked"
    neighbour = await add_job(engine, "wait", {"until": str(until_file)})
    victim = await workers.start(lease=2 * LEASE)
    await victim.says(f"running {neighbour}")
    blocking = await add_job(engine, "block", {"marker": str(marker), "until": str(blocked)})
    await victim.says(f"running {blocking}")
    heir = await workers.start(lease=2 * LEASE)
    await heir.says(f"running {neighbour}")
    await heir.says(f"completed {blocking}")
    assert f"blocked {blocking}" not in victim.lines
    blocked.touch()
    await victim.says(f"lost {blocking}")
    await victim.says(f"lost {neighbour}")
    until_file.touch()
    await heir.says(f"completed {neighbour}")
    assert await effects(engine) == [neighbour, blocking]
    for job_id in (neighbour, blocking):
        assert await counted(engine, job_id) == (JobState.completed, 2, 1, 0)


# --- P11, P12: what could end a puller --------------------------------------------------------------------------------


async def overflow() -> None:
    await overflow()


RAISED = {
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "CancelledError": asyncio.CancelledError(),
    "GeneratorExit": GeneratorExit(),
    "ExceptionGroup": ExceptionGroup("both", [ValueError("a"), TypeError("b")]),
    "BaseExceptionGroup": BaseExceptionGroup("both", [KeyboardInterrupt(), SystemExit()]),
    "MemoryError": MemoryError(),
    "RecursionError": None,
}


async def test_p11_whatever_a_handler_raises_is_a_failed_try_and_all_pullers_go_on(engine):
    async def raises(event: Any, session: Any, job: Any) -> None:
        if (error := RAISED[job.data["kind"]]) is None:
            await overflow()
        else:
            raise error

    hook, gate, pullers = Recorder(), Gate(), 3
    ids = await add_jobs(engine, [NewJob("raises", {"kind": kind}, max_retry_count=2) for kind in RAISED])
    handlers = {"raises": raises, "hold": gate.__call__}
    options = {"retry_delay": 0, "poll_interval": POLL, "hooks": [hook]}
    async with QueueWorker(engine, handlers, parallel_count=pullers, **options) as worker:
        await all_complete(engine)
        await add_jobs(engine, [NewJob("hold")] * pullers)
        await until(lambda: len(gate.running) == pullers)
        assert worker.healthy
        gate.open.set()
    assert sorted(hook.verdicts) == ["completed"] * pullers + ["failed"] * len(RAISED) + ["retried"] * len(RAISED)
    for job_id, kind in zip(ids, RAISED, strict=True):
        assert [error["class"] for error in (await row_of(engine, job_id)).errors] == [kind] * 2


class Deadly:
    """A hook that is told of a start by the puller itself, and raises there what ends a task."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.raised = 0

    def on_started(self, record: Any) -> None:
        if record.job.name == "deadly":
            self.raised += 1
            raise self.error


async def strike_by_hook(engine: AsyncEngine, hook: Deadly) -> None:
    await add_job(engine, "deadly")
    await until(lambda: hook.raised)


async def strike_from_outside(engine: AsyncEngine, hook: Deadly) -> None:
    # The first puller has the first job, so the last one is idle.
    (puller,) = (task for task in asyncio.all_tasks() if task.get_name() == "queue_kit: puller 2")
    assert puller.cancel()


STRIKES = [
    pytest.param(strike_by_hook, asyncio.CancelledError(), id="a hook raises CancelledError"),
    pytest.param(strike_by_hook, SystemExit(), id="a hook raises SystemExit"),
    pytest.param(strike_by_hook, GeneratorExit(), id="a hook raises GeneratorExit"),
    pytest.param(strike_from_outside, None, id="somebody cancels it"),
]


@pytest.mark.parametrize(("strike", "error"), STRIKES)
async def test_p12_a_puller_that_is_struck_ends_no_sibling_and_is_there_again(engine, strike, error):
    hook, gate, pullers = Deadly(error), Gate(), 3
    handlers = {"deadly": nothing, "hold": gate.__call__}
    options = {"poll_interval": POLL, "grace": 0.1, "hooks": [hook]}
    async with QueueWorker(engine, handlers, parallel_count=pullers, **options) as worker:
        await add_job(engine, "hold")
        await until(lambda: gate.running)
        await strike(engine, hook)
        await add_jobs(engine, [NewJob("hold")] * (pullers - 1))
        await until(lambda: len(gate.running) == pullers)
        assert worker.healthy
        gate.open.set()
        await all_complete(engine)
    assert len(gate.ran) == pullers
    assert await count_jobs(engine, JobRow.state != JobState.completed.value) == 0


# --- P13: a limit on memory -------------------------------------------------------------------------------------------

MEMORY = 1.5


async def test_p13_a_handler_that_takes_all_memory_has_failed_and_its_worker_goes_on(engine, workers, tmp_path):
    ledger = tmp_path / "ledger"
    greedy = await add_job(engine, "greedy", priority=0)
    worker = await workers.start(memory=MEMORY, parallel_count=1)
    await worker.says(f"failed {greedy}")
    later = await add_job(engine, "write", {"ledger": str(ledger)})
    await worker.says(f"completed {later}")
    assert (await row_of(engine, greedy)).errors[0]["class"] == "MemoryError"


async def test_p13_a_process_that_dies_for_want_of_memory_loses_no_other_job_and_its_killer_is_given_up(
    engine, workers, tmp_path
):
    ledger = tmp_path / "ledger"
    poison = await add_job(engine, "careless", {"gib": 2 * MEMORY}, priority=0)
    fine = await add_job(engine, "write", {"ledger": str(ledger)})
    deaths = []
    while not deaths or deaths[-1] != 0:
        worker = await workers.start(memory=MEMORY, lease=LEASE)

        async def over(worker: Member = worker) -> bool:
            return worker.status is not None or await complete(engine) == 2

        await until(over)
        deaths.append(await worker.stop() if worker.status is None else await worker.over())
    assert deaths == [-signal.SIGSEGV] * 3 + [0]
    row = await row_of(engine, poison)
    assert (row.state, row.lost) == (JobState.failed, 3)
    assert "lease lost 3 times" in row.errors[0]["reason"]
    assert await effects(engine) == [fine]


async def test_p13_with_enough_memory_the_same_handler_succeeds(pg_engine, postgres_url):
    job_id = await add_job(pg_engine, "careless", {"gib": 2 * MEMORY})
    async with processes(postgres_url) as made:
        worker = await made.start(memory=4 * MEMORY)
        await worker.says(f"completed {job_id}")


# --- P14: programs that a handler starts ------------------------------------------------------------------------------


async def test_p14_a_program_that_outlives_its_worker_keeps_nothing_of_the_workers_open(engine, workers, tmp_path):
    until_file = tmp_path / "until"
    job_id = await add_job(engine, "parent", {"until": str(until_file)})
    victim = await workers.start(lease=LEASE)
    await until(lambda: "child" in {line.split()[0] for line in victim.lines})
    (line,) = (line for line in victim.lines if line.startswith("child"))
    child = int(line.split()[1])
    try:
        kept, of_worker = open_files(child), open_files(victim.pid)
        await victim.kill()
        assert Path(f"/proc/{child}").exists()
        assert engine.name == "postgresql" or any("queue.db" in file for file in of_worker)
        assert connections(kept) == set()
        until_file.touch()
        heir = await workers.start(lease=LEASE)
        await heir.says(f"completed {job_id}")
        assert await counted(engine, job_id) == (JobState.completed, 2, 1, 0)
        if engine.name == "postgresql":
            await until(lambda: no_other_backend_is_in_a_transaction(engine))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def connections(files: set[str]) -> set[str]:
    """Of open files the sockets, of which some lead to a server, and the database's file."""
    return {file for file in files if file.startswith("socket:") or "queue.db" in file}


async def no_other_backend_is_in_a_transaction(engine: AsyncEngine) -> bool:
    others = "datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
    return await raw(engine, f"SELECT pid FROM pg_stat_activity WHERE {others}") == []


async def test_p14_a_process_that_runs_a_handler_has_none_of_its_workers_connections(engine, workers, tmp_path):
    until_file, pid = tmp_path / "until", tmp_path / "pid"
    job_id = await add_job(engine, "compute", {"until": str(until_file), "pid": str(pid)})
    worker = await workers.start()
    await until(lambda: pid.exists() and pid.read_text())
    assert engine.name == "postgresql" or any("queue.db" in file for file in open_files(worker.pid))
    assert connections(open_files(int(pid.read_text()))) == set()
    until_file.touch()
    await worker.says(f"completed {job_id}")
