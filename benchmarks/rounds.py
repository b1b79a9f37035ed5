"""Round by round: each run in a fresh process on a fresh database, and what becomes of it."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import click

from benchmarks import machine, peers, server
from benchmarks.plan import Run
from benchmarks.run import WRONG
from benchmarks.targets import Result

CHECKOUT = Path(__file__).parents[1]
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
        spec = {"workload": run.workload, "queue": run.queue, "options": run.options, "sizes": run.sizes, "url": url}
        others = await _busy_cores()
        code, out, err = await _in_a_process(json.dumps(spec))
    if code == 0:
        return Result(run.target, run.label, run.queue, number, json.loads(out.splitlines()[-1]) | {"others": others})
    last = (err.strip().splitlines() or [f"ended with status {code}"])[-1]
    kind = "wrong" if code == WRONG else "failed"
    return Result(run.target, run.label, run.queue, number, {}, f"{kind}: {last}")


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


async def _in_a_process(spec: str) -> tuple[int, str, str]:
    """A run in a fresh process; it and its workers are gone afterwards, whatever happens."""
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "benchmarks.run"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=CHECKOUT, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            out, err = await process.communicate(spec.encode())
    except TimeoutError:
        return -1, "", f"not done within {RUN_SECONDS} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return process.returncode or 0, out.decode(), err.decode()
