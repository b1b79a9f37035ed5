"""Writers that are killed one after the other: `python killed.py FILE ACKNOWLEDGED SEED KILLS`.

Each is a fork that adds jobs and runs them, until its parent kills it at a random time after it was told of some. The
ids of the jobs that it was told are stored go to a file at once, which outlives it.
"""

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from queue_kit import QueueWorker, add_job, sqlite_engine
from tests.support import ADD_EFFECT

file, acknowledged, seed, kills = sys.argv[1:]


async def write(event: Any, session: Any, job: Any) -> None:
    await session.execute(ADD_EFFECT, {"job_id": job.id})


async def add_and_run() -> None:
    parent = os.getppid()
    ledger = os.open(acknowledged, os.O_WRONLY | os.O_APPEND)
    engine = sqlite_engine(file)
    async with QueueWorker(engine, {"write": write}, parallel_count=2, lease=0.2, poll_interval=0.05):
        while os.getppid() == parent:  # or it would outlive a test that has failed
            job_id = await add_job(engine, "write", max_retry_count=1_000)
            os.write(ledger, f"{job_id}\n".encode())


sqlite_engine(file)  # loads the driver, once for all
told = Path(acknowledged)
told.touch()
dice = random.Random(int(seed))
for _ in range(int(kills)):
    child = os.fork()
    if child == 0:
        asyncio.run(add_and_run())
        os._exit(0)
    enough = told.stat().st_size + dice.randint(1, 30)
    while told.stat().st_size < enough:
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    print("killed", flush=True)
