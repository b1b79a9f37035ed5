"""Round by round: each run in a fresh process on a fresh database, and what becomes of it."""

import asyncio
import multiprocessing
import os
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import click

from benchmarks import machine, peers, server
from benchmarks.measure import Figures
from benchmarks.plan import Run
from benchmarks.run import answer
from benchmarks.targets import Result

# All are forked from a process that has imported what they need; to import it takes longer (0.7 s) than many a run.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.run", "alembic.command"])
RUN_SECONDS = 900


async def measure(runs: list[Run], url: str, rounds: int, *, quick: bool) -> list[Result]:
    """All rounds of these runs, on the server `url`, with a line on stderr for each run."""
    results = []
    total = max((run.times(rounds, quick=quick) for run in runs), default=0)
    for number in range(1, total + 1):
        now = [run for run in runs if number <= run.times(rounds, quick=quick)]
        for index, run in enumerate(now, 1):
            click.echo(f"round {number}/{total}, {index}/{len(now)}: {run.target} {run.label} ", err=True, nl=False)
            began = time.monotonic()
            results.append(await _result(run, url, number))
            click.echo(f"({time.monotonic() - began:.1f} s) {results[-1].error}", err=True)
    return results


async def _result(run: Run, server_url: str, number: int) -> Result:
    async with _place(run, server_url) as url:
        others = await _busy_cores()
        figures, error = await _in_a_process(run, url)
    return Result(run.target, run.label, run.queue, number, figures and figures | {"others": others}, error)


async def _busy_cores(seconds: float = 0.2) -> float | None:
    """How many cores others use, while nothing of ours runs."""
    before = machine.busy_seconds()
    await asyncio.sleep(seconds)
    after = machine.busy_seconds()
    return None if before is None or after is None else (after - before) / seconds


@asynccontextmanager
async def _place(run: Run, server_url: str) -> AsyncIterator[str]:
    if run.queue == "arq":
        key = f"qk_bench_{uuid.uuid4().hex[:12]}"
        try:
            yield key
        finally:
            await peers.load("arq", key, {}).discard()
    elif run.sqlite:
        with tempfile.TemporaryDirectory(prefix="qk_bench_") as folder:
            yield str(Path(folder) / "queue.db")
    else:
        async with server.database(server_url) as url:
            yield url


async def _in_a_process(run: Run, url: str) -> tuple[Figures, str]:
    """A run in a fresh process; it and its workers are gone afterwards, whatever happens."""
    result, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=answer, args=(run, url, sender))
    process.start()
    assert process.pid
    sender.close()
    try:
        async with asyncio.timeout(RUN_SECONDS):
            answered: tuple[Figures, str] = await asyncio.to_thread(result.recv)
            await asyncio.to_thread(process.join)  # it takes along what it shared with its workers
            return answered
    except TimeoutError:
        return {}, f"failed: not done within {RUN_SECONDS} s"
    except EOFError:
        return {}, "failed: its process has died"
    finally:
        process.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers
        process.join()
