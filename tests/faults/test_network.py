"""Faults of the network (N1 to N9 of the fault matrix): connections that are reset, fall silent or are cut at the worst
moment, a network that is slow, a server that accepts and says nothing. By a proxy between a worker and its database.
"""

import asyncio
import random
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import AmbiguousCommit, JobRow, JobState, LeaseLost, NewJob, QueueWorker, add_job, add_jobs
from tests.database.clock import database_now
from tests.database.running import Gate, alone, listening, raw
from tests.faults.running import QUICK, adding, each_happened_once, told_each_change_once, write
from tests.proxy import Proxy, through_proxy
from tests.support import (
    ADD_EFFECT,
    DOWN,
    MARGIN,
    SQLALCHEMY_2_0,
    UP,
    Recorder,
    all_complete,
    changes,
    count_jobs,
    effects,
    make_effects,
    row_of,
    until,
)


@pytest.fixture
async def direct(pg_engine: AsyncEngine) -> AsyncEngine:
    """The database as somebody sees it whose network is sound."""
    await make_effects(pg_engine)
    return pg_engine


@pytest.fixture
async def away(direct: AsyncEngine) -> AsyncIterator[tuple[Proxy, AsyncEngine]]:
    """A proxy and an engine through it."""
    async with through_proxy(direct) as pair:
        yield pair


# --- N1: reset connections --------------------------------------------------------------------------------------------


def reset_one(proxy: Proxy, dice: random.Random) -> bool:
    """Reset one connection of those there are, in both directions; whether there was one."""
    connections = list(dict.fromkeys(proxy._connections.values()))  # in the order in which they came
    if not connections:
        return False
    chosen = dice.choice(connections)
    for writer in (chosen.client, chosen.server):
        at_once = struct.pack("ii", 1, 0)  # closed without waiting for what was sent, which the other side sees as RST
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    chosen.abort()
    return True


async def test_n1_connections_that_are_reset_cost_no_job_and_no_try(away, direct, caplog):
    proxy, engine = away
    dice, hook = random.Random(1), Recorder()
    resets = 0
    options = {"parallel_count": 4, "lease": 3.0, "hooks": [hook], **QUICK}  # a claim without a reply waits for it
    async with QueueWorker(engine, {"write": write}, **options) as worker:
        async with adding(engine) as ledger:
            while resets < 25:
                await ledger.grows()
                resets += reset_one(proxy, dice)
        await all_complete(direct)
        await until(lambda: worker.healthy)
    assert proxy.attempts > 10
    await each_happened_once(direct, ledger)
    told_each_change_once(caplog, hook.states)


# --- N2, N3, N7: connections that fall silent -------------------------------------------------------------------------


async def test_n2_a_worker_that_is_cut_off_silently_ends_its_run_when_its_lease_does(away, direct, caplog):
    """Its runs end by its own clock, which starts when a renewal is sent: at about the time that the row says."""
    lease = 3.0
    proxy, engine = away
    hooks = Recorder(), Recorder()
    reasons: list[object] = []
    gate = Gate()

    async def work(event: Any, session: Any, job: Any) -> None:
        try:
            await gate(event, session, job)
        finally:
            reasons.append(event.signal.reason)
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    job_id = await add_job(direct, "work", max_retry_count=1)
    options = {"lease": lease, "cancel_grace": 0.5, **QUICK}
    async with QueueWorker(engine, {"work": work}, hooks=[hooks[0]], **options):
        await until(lambda: gate.running)
        proxy.stall()
        proxy.refusing = True
        await until(lambda: reasons)
        ended = await database_now(direct)
        held = await row_of(direct, job_id)
        assert isinstance(reasons[0], LeaseLost)
        late = (ended - held.lease_until).total_seconds()
        assert -lease / 2 < late < lease / 20 + MARGIN
        async with QueueWorker(direct, {"work": work}, hooks=[hooks[1]], **options | {"lease": 5.0}):
            await until(lambda: gate.running)
            taken = await row_of(direct, job_id)
            gate.open.set()
            await until(lambda: hooks[1].settled)
        proxy.up()
        proxy.cut()
        await until(lambda: hooks[0].settled)
    assert (held.claim_no, taken.claim_no, taken.lost) == (1, 2, 1)
    assert [hook.verdicts for hook in hooks] == [["lost"], ["completed"]]
    assert await effects(direct) == [job_id]
    told_each_change_once(caplog, hooks[0].states)


async def test_n3_a_listener_that_hears_nothing_costs_a_poll_and_listens_again(away, direct, monkeypatch, caplog):
    poll, probe, patience = 0.5, 1.0, 2.0
    monkeypatch.setattr("queue_kit._wakeup.PROBE_EVERY", probe)
    monkeypatch.setattr("queue_kit._wakeup.PROBE_TIMEOUT", patience)
    proxy, through = away
    hook = Recorder()
    async with QueueWorker(direct, {"write": write}, poll_interval=poll, listen=through, hooks=[hook]) as worker:
        await until(lambda: listening(direct))
        attempts = proxy.attempts
        proxy.stall()
        stalled = time.monotonic()
        await add_job(direct, "write")
        await until(lambda: hook.started)
        started_after = time.monotonic() - stalled
        await until(lambda: "not listening, polling instead: TimeoutError" in caplog.text)
        assert worker.healthy
        await until(lambda: "listening again" in caplog.text)
        listened_after = time.monotonic() - stalled
        await all_complete(direct)
    assert proxy.attempts == attempts + 1
    assert started_after < poll + MARGIN
    assert listened_after < probe + patience + 0.5 + MARGIN  # the half second is the pause before it connects again
    said = [record.message.split(":")[0] for record in caplog.records if "listening" in record.message]
    assert said == ["not listening, polling instead", "listening again"]
    told_each_change_once(caplog, hook.states)


@pytest.mark.parametrize("passing", [1, 7, 40])
async def test_n7_a_reply_that_stops_half_way_is_given_up_in_time(away, direct, caplog, passing):
    """A statement has a third of a lease, at least a second; the driver may take two more to close."""
    proxy, engine = away
    gate, hook = Gate(), Recorder()
    async with QueueWorker(engine, {"hold": gate.__call__}, lease=3.0, hooks=[hook], listen=False, **QUICK) as worker:
        job_id = await add_job(direct, "hold", max_retry_count=1)
        await until(lambda: gate.running)
        proxy.stall_after(passing)
        stalled = time.monotonic()
        await until(lambda: "database_down" in hook.states)
        noticed_after = time.monotonic() - stalled
        await until(lambda: worker.healthy)
        gate.open.set()
        await all_complete(direct)
    assert noticed_after < 1.0 + 2.0 + MARGIN
    row = await row_of(direct, job_id)
    assert (row.state, row.lost, row.retry_count) == (JobState.completed, 0, 0)
    told_each_change_once(caplog, hook.states)


BETWEEN_TWO_POLLS = """
    SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    HAVING max(state_change) BETWEEN clock_timestamp() - interval '0.9 s' AND clock_timestamp() - interval '0.3 s'
"""


REPLY_TO_BEGIN = 17
"""Bytes. The ping begins a transaction, asks, and rolls back: what falls silent is what it asked."""


async def idle(event: Any, session: Any, job: Any) -> None:
    """Uses no session: that one's engine is the application's."""


async def test_n7_a_connection_that_falls_silent_in_a_ping_of_the_pool_is_given_up_as_well(direct, caplog):
    hook = Recorder()
    async with through_proxy(direct, pool_pre_ping=True) as (proxy, engine):
        options = {
            "lease": 3.0,
            "listen": False,
            "hooks": [hook],
            "poll_interval": 2.0,
            "grace": 0,
            "cancel_grace": 0.5,
        }
        async with QueueWorker(engine, {"idle": idle}, **options) as worker:
            await add_job(direct, "idle")
            await all_complete(direct)
            await until(lambda: raw(direct, BETWEEN_TWO_POLLS))
            proxy.stall_after(REPLY_TO_BEGIN)
            await until(lambda: "database_down" in hook.states)
            await until(lambda: worker.healthy, seconds=6)
            await add_job(direct, "idle")
            await all_complete(direct)
    assert hook.verdicts == ["completed"] * 2
    told_each_change_once(caplog, hook.states)


# --- N4: a cut around the COMMIT of an enqueue ------------------------------------------------------------------------


async def test_n4_an_enqueue_that_is_cut_off_says_so_and_adding_again_adds_no_second(away, direct):
    """At two known moments, before the statement arrives and before its reply does, and at many others."""
    proxy, engine = away
    told: list[tuple[type[BaseException] | None, bool]] = []
    for turns in (-2, -1, *range(0, 60, 2)):
        async with engine.connect() as connection:  # so that it is the statement that is cut, and not its connection
            await connection.execute(text("SELECT 1"))
        key = f"key {turns}"
        if turns < 0:
            proxy.down_at(key.encode(), delivered=turns == -1)
        adding_one = asyncio.create_task(add_job(engine, "write", {"turns": turns}, unique_key=key))
        if turns < 0:
            await proxy.tripped.wait()
            proxy.tripped.clear()
        else:
            for _ in range(turns):
                await asyncio.sleep(0)
            proxy.cut()
        (error,) = await asyncio.gather(adding_one, return_exceptions=True)
        proxy.up()
        await engine.dispose()
        await alone(direct)
        stored = await count_jobs(direct, JobRow.unique_key == key) == 1
        told.append((type(error) if isinstance(error, BaseException) else None, stored))
        again = await add_job(direct, "write", {"turns": turns}, unique_key=key)
        assert (again is None) is stored
    assert told[:2] == [(AmbiguousCommit, False), (AmbiguousCommit, True)]
    assert set(told) <= {(AmbiguousCommit, True), (AmbiguousCommit, False), (None, True)}
    assert await count_jobs(direct) == len(told)
    async with QueueWorker(direct, {"write": write}, parallel_count=4):
        await all_complete(direct)
    assert len(await effects(direct)) == len(told)


# --- N6: a slow network -----------------------------------------------------------------------------------------------


async def test_n6_a_slow_network_keeps_its_leases(away, direct, caplog):
    """200 ms each way; half of that with SQLAlchemy 2.0, which takes more turns to ping a connection."""
    proxy, engine = away
    latency = 0.1 if SQLALCHEMY_2_0 else 0.2
    gate, hook = Gate(), Recorder()
    ids = await add_jobs(direct, [NewJob("hold", max_retry_count=1)] * 3)
    options = {"parallel_count": 3, "lease": 6.0, "hooks": [hook], "listen": False, **QUICK}

    async def work(event: Any, session: Any, job: Any) -> None:
        await gate(event, session, job)
        await session.execute(ADD_EFFECT, {"job_id": job.id})

    async with QueueWorker(engine, {"hold": work}, **options):
        await until(lambda: len(gate.running) == 3)
        proxy.latency = latency
        first = (await row_of(direct, ids[0])).lease_until

        async def renewed_twice() -> bool:
            return ((await row_of(direct, ids[0])).lease_until - first).total_seconds() > 3.0

        await until(renewed_twice)
        gate.open.set()
        await all_complete(direct)
        proxy.latency = 0.0
    assert await effects(direct) == ids
    rows = [await row_of(direct, job_id) for job_id in ids]
    assert [(row.state, row.claim_no, row.lost, row.retry_count) for row in rows] == [(JobState.completed, 1, 0, 0)] * 3
    told_each_change_once(caplog, hook.states)


async def test_n6_a_network_of_a_kilobyte_a_second_loses_leases_cleanly_or_keeps_them(away, direct, caplog):
    proxy, engine = away
    hook = Recorder()
    async with QueueWorker(engine, {"write": write}, parallel_count=3, lease=1.0, hooks=[hook], **QUICK) as worker:
        ids = await add_jobs(direct, [NewJob("write", max_retry_count=20)] * 3)
        await all_complete(direct)
        proxy.rate = 1024.0
        ids += await add_jobs(direct, [NewJob("write", max_retry_count=20)] * 20)
        began = await database_now(direct)

        async def three_leases_are_over() -> bool:
            return (await database_now(direct) - began).total_seconds() > 3.0

        await until(three_leases_are_over)
        proxy.rate = None
        await all_complete(direct)
        await until(lambda: worker.healthy)
    assert await effects(direct) == ids
    assert await count_jobs(direct, JobRow.state == JobState.completed.value, JobRow.retry_count == 0) == len(ids)
    told_each_change_once(caplog, hook.states)


# --- N9: connections that are accepted, and nothing is said -----------------------------------------------------------


async def test_n9_a_server_that_accepts_and_says_nothing_is_given_up_in_time_and_found_again(away, direct, caplog):
    """A worker gives a connection a third of a lease, at least a second and at most ten."""
    proxy, engine = away
    gate, hook = Gate(), Recorder()
    job_id = await add_job(direct, "hold", max_retry_count=1)
    options = {"lease": 3.0, "listen": False, "hooks": [hook], **QUICK}
    async with QueueWorker(engine, {"hold": gate.__call__}, **options) as worker:
        await until(lambda: gate.running)
        proxy.mute = True
        before = proxy.attempts
        proxy.cut()
        await until(lambda: proxy.attempts >= before + 1)
        accepted = time.monotonic()
        await until(lambda: proxy.attempts >= before + 2)
        given_up_after = time.monotonic() - accepted
        assert not worker.healthy
        gate.open.set()
        proxy.mute = False
        await all_complete(direct)
        await until(lambda: worker.healthy)
    assert given_up_after < 5.0
    row = await row_of(direct, job_id)
    assert (row.state, row.retry_count) == (JobState.completed, 0)
    assert changes(caplog) == [DOWN, UP]
    told_each_change_once(caplog, hook.states)
