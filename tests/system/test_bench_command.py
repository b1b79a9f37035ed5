"""`queue-kit bench`: what it prints, and that it leaves the tables as they were, however it ends."""

import asyncio
import json
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import _bench
from queue_kit.cli import main
from queue_kit.models import HISTORY, JOBS
from tests.conftest import engine_for
from tests.crowd import running
from tests.database.running import in_every_state, worker_rows
from tests.support import count_jobs, until

VARIABLE = "QUEUE_KIT_DATABASE_URL"

SETTINGS = {"PostgreSQL": {"fsync", "synchronous_commit"}, "SQLite": {"journal_mode", "synchronous"}}


def started(url: str, *arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """The command as a process."""
    return running(sys.executable, "-m", "queue_kit", "bench", *arguments, env={**os.environ, VARIABLE: url})


async def said(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Its status, its output and its errors, when it has ended."""
    async with asyncio.timeout(90):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def run(url: str, *arguments: str) -> tuple[int | None, str, str]:
    async with started(url, *arguments) as process:
        return await said(process)


def invoke(url: str, *arguments: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, ["bench", *arguments], prog_name="queue-kit", env={VARIABLE: url})


async def all_rows(engine: AsyncEngine) -> list[Any]:
    """Of jobs, and of the history of what ran."""
    async with engine.connect() as connection:
        jobs = (await connection.execute(select(JOBS).order_by(JOBS.c.id))).all()
        history = (await connection.execute(select(HISTORY).order_by(HISTORY.c.minute, HISTORY.c.name))).all()
    return [*jobs, *history]


async def test_the_figures_as_json_and_the_tables_as_they_were(engine, database_url):
    await in_every_state(engine)
    before = await all_rows(engine)
    status, output, errors = await run(database_url, "--json", "--jobs", "1500")
    assert (status, errors) == (0, "")
    figures = json.loads(output)
    database = figures.pop("database").split()[0]
    assert set(figures.pop("settings")) == SETTINGS[database]
    assert (figures.pop("jobs"), figures.pop("pooled")) == (1500, False)
    assert 5 <= figures.pop("pickups") <= 50
    pickup = figures.pop("pickup_ms")
    assert 0 < pickup["p50"] <= pickup["p95"] <= pickup["p99"]
    assert set(figures) == {
        "round_trip_ms",
        "add_jobs_per_second",
        "add_job_per_second",
        "drain_100_pullers_per_second",
        "drain_1_puller_per_second",
    }
    assert min(figures.values()) > 0
    assert await all_rows(engine) == before
    assert await worker_rows(engine) == []


async def test_the_figures_as_a_table(engine, database_url):
    status, output, errors = await run(database_url, "--jobs", "20")
    assert (status, errors) == (0, "measuring; it takes some seconds, more on a distant database\n")
    first, second, _, *rows = output.splitlines()
    assert first.startswith(("PostgreSQL ", "SQLite "))
    assert second.startswith("a round trip takes ")
    assert [row[:24].strip() for row in rows] == [
        "",
        "add_jobs, 20 at once",
        "add_job, one by one",
        "run, 100 pullers",
        "run, 1 puller",
        "pickup when idle",
    ]
    assert await count_jobs(engine) == 0


async def test_without_tables_it_says_what_to_do(empty_database_url, empty_engine):
    async with empty_engine.connect():  # makes SQLite's file
        pass
    result = await asyncio.to_thread(invoke, empty_database_url, "--json")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "the queue's tables are missing: run `queue-kit migrate`" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("jobs", ["0", "100001", "many"])
def test_a_number_of_jobs_out_of_bounds_is_wrong_usage(jobs, tmp_path: Path):
    result = invoke(f"sqlite:///{tmp_path}/queue.db", "--jobs", jobs)
    assert result.exit_code == 2
    assert "Invalid value for '--jobs'" in result.output
    assert not (tmp_path / "queue.db").exists()


@pytest.mark.parametrize("moment", ["adding", "running"])
async def test_ctrl_c_leaves_nothing_behind(engine, database_url, moment):
    async with started(database_url, "--jobs", "100000") as process:

        async def has_come() -> bool:
            assert process.returncode is None
            return bool(await (count_jobs(engine) if moment == "adding" else worker_rows(engine)))

        await until(has_come, seconds=40)
        process.send_signal(signal.SIGINT)
        status, output, errors = await said(process)
    assert (status, output) == (1, "")
    assert errors.split("\n", 1)[1].strip() == "Aborted!"
    assert await count_jobs(engine) == 0
    assert await worker_rows(engine) == []


def test_a_failure_leaves_nothing_behind_and_is_said_in_a_line(database_url, monkeypatch):
    async def fail(engine: AsyncEngine, name: str) -> list[float]:
        assert await count_jobs(engine, JOBS.c.name == name) == 210
        raise OSError("the cable was cut")

    monkeypatch.setattr(_bench, "_pick_up", fail)
    result = invoke(database_url, "--json", "--jobs", "10")
    assert result.exit_code == 1
    assert result.output.startswith("Error: the database cannot be reached (the cable was cut): ")
    assert result.output.count("\n") == 1

    async def left() -> int:
        engine = engine_for(database_url)
        try:
            return await count_jobs(engine)
        finally:
            await engine.dispose()

    assert asyncio.run(left()) == 0


def test_jobs_that_could_not_be_removed_are_named(database_url, monkeypatch):
    monkeypatch.setattr(_bench, "delete", lambda _table: (_ for _ in ()).throw(OSError("no way")))
    result = invoke(database_url, "--json", "--jobs", "10")
    assert result.exit_code == 1
    assert "Error: the jobs named 'queue_kit.bench." in result.output
    assert result.output.endswith("could not be removed: no way\n")
