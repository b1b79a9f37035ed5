"""A worker in a process of its own, for the tests of signals: `python signalled.py URL HANDLER [option=value ...]`.

It says on stdout what it does, a word a line. `signal_at=checkout:2` lets it send itself SIGTERM when it takes its
second connection.
"""

import asyncio
import math
import os
import signal
import sqlite3
import sys
import threading
import time
from typing import Any

from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import QueueWorker, in_thread, sqlite_engine

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT max(x) FROM c"

stopping = asyncio.Event()


def say(word: str) -> None:
    print(word, flush=True)


async def finishes(event: Any, session: Any, job: Any) -> None:
    say("running")
    await stopping.wait()
    say("finished")


async def endless(event: Any, session: Any, job: Any) -> None:
    say("running")
    await asyncio.sleep(600)


async def refuses(event: Any, session: Any, job: Any) -> None:
    say("running")
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            say("refused")


async def sleeps(event: Any, session: Any, job: Any) -> None:
    threading.Timer(0.2, say, ["running"]).start()
    time.sleep(600)


async def waits_in_c(event: Any, session: Any, job: Any) -> None:
    # The main thread runs nothing of Python meanwhile, as with a driver that is not asynchronous.
    threading.Timer(0.2, say, ["running"]).start()
    sqlite3.connect(":memory:").execute(ENDLESS).fetchone()


async def exits(event: Any, session: Any, job: Any) -> None:
    say("running")
    sys.exit(7)


def stuck(event: Any, job: Any) -> None:
    say("running")
    time.sleep(600)


HANDLERS = {
    "finishes": finishes,
    "endless": endless,
    "refuses": refuses,
    "sleeps": sleeps,
    "waits in C": waits_in_c,
    "exits": exits,
    "stuck": in_thread(stuck),
}


class Hook:
    def on_worker_state(self, record: Any) -> None:
        if record.state not in ("listening", "polling"):  # which may come at any time
            say(record.state)
        if record.state == "stopping":
            stopping.set()

    def on_settled(self, record: Any) -> None:
        say(record.outcome.verdict)


def signal_at(engine: AsyncEngine, moment: str) -> None:
    kind, _, number = moment.partition(":")
    seen: list[str] = []

    def count(*_: object) -> None:
        seen.append(kind)
        if len(seen) == int(number):
            say("signalled")
            os.kill(os.getpid(), signal.SIGTERM)

    sqlalchemy_event.listen(engine.sync_engine.pool, kind, count)


async def main(url: str, handler: str, options: dict[str, str]) -> None:
    sqlite = url.startswith("sqlite")
    engine = sqlite_engine(str(make_url(url).database)) if sqlite else create_async_engine(url)
    if moment := options.pop("signal_at", None):
        signal_at(engine, moment)
    seconds = {name: float(value) for name, value in options.items()}
    worker = QueueWorker(
        engine,
        {"work": HANDLERS[handler]},
        handler_timeout=math.inf,
        max_retry_count=1,
        lease=600,
        poll_interval=0.1,
        hooks=[Hook()],
        **seconds,
    )
    say("ready")
    await worker.run()
    await engine.dispose()
    say("left run")


asyncio.run(main(sys.argv[1], sys.argv[2], dict(option.split("=") for option in sys.argv[3:])))
