"""One run, in a process of its own."""

import asyncio
import os
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import workloads
from benchmarks.measure import Figures, WrongRun
from benchmarks.plan import Run


def answer(run: Run, url: str, to: Connection) -> None:
    """Do a run on the empty database `url`, and send its `result`; what queues say for themselves is not shown."""
    os.setsid()  # so that its workers can be ended with it
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)
    to.send(result(run, url))


def result(run: Run, url: str) -> tuple[Figures, str]:
    """The figures, or the error that makes the run count for nothing."""
    workload: Any = getattr(workloads, run.workload)
    try:
        return asyncio.run(workload(run.queue, url, run.options, **run.sizes)), ""
    except WrongRun as wrong:
        return {}, f"wrong: {wrong}"
    except Exception as error:  # noqa: BLE001 - the other runs go on
        return {}, f"failed: {type(error).__name__}: {error}"
