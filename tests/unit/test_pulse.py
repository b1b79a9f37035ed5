"""The worker's timer: what it may conclude from an answer of the database."""

import asyncio
from types import SimpleNamespace

from queue_kit._link import Link
from queue_kit._pulse import Pulse
from queue_kit._scan import Scan
from queue_kit._store import Look
from tests.support import until


async def test_an_answer_to_a_question_from_before_the_trouble_does_not_end_it():
    link = Link(lease=30.0, on_change=lambda _: None, on_trouble=lambda: None)
    asked, answer = [], asyncio.Event()

    async def look(*, after):
        asked.append(link.is_up)
        await answer.wait()
        return Look(claimable=False, due_in=None, cron_missing=False)

    async def check_in(): ...

    store = SimpleNamespace(look=look, round_trip=0.0)
    pulse = Pulse(store, link, Scan(strict=True), poll_interval=600.0, wake=lambda: None, check_in=check_in)
    beating = asyncio.create_task(pulse.serve())
    await until(lambda: asked == [True])
    link.failed(ConnectionError("somebody else's statement broke"))
    answer.set()
    await until(lambda: link.is_up)
    assert asked == [True, False]
    beating.cancel()
