"""The statements that run all day, and the plans that PostgreSQL makes for them: with the texts and types that a worker
sends."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Executable, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit._dialect.columns import LONG_AGO
from queue_kit._scan import Place
from queue_kit._statements import changing, claiming, fencing, settling
from queue_kit._statements.vocabulary import as_batch
from queue_kit._store import NO_LIMIT, PROMOTE_LIMIT
from queue_kit.models import FAILED

NAMES = [f"name.{number}" for number in range(5)]
HISTORY = 100_000
WORKER = UUID(int=7)
BATCH = 100
LEASED_ID = HISTORY + 1
"""The first job that the seeded worker holds (PostgreSQL)."""
PLAN_MODES = ("force_custom_plan", "force_generic_plan")


class Call(NamedTuple):
    """A statement and its parameters, by the names that `_statements` gives them."""

    statement: Executable
    parameters: dict[str, Any]


def claim(*, wanted: int = 50, ahead: int = 0, after: Place | None = None, held: int = 0) -> Call:
    priority, due, job_id = (-1, LONG_AGO, 0) if after is None else after
    return Call(
        claiming.claim(),
        {
            "names": as_batch(NAMES),
            "running_ids": as_batch([]),
            "held_ids": as_batch(range(1, held + 1)),
            "after_priority": priority,
            "after_due": due,
            "after_id": job_id,
            "suspects_from": 0,
            "suspects_below": NO_LIMIT,
            "wanted": wanted,
            "ahead": ahead,
            "bytes_ahead": 4_194_304,
            "worker": uuid4(),
            "lease": 30.0,
        },
    )


def batch(**fields: Any) -> dict[str, Any]:
    """The parameters of what is settled or renewed: jobs that the seeded worker holds."""
    fences = [(LEASED_ID + number, 1) for number in range(BATCH)]
    rows = [{"id": id_, "claim_no": claim_no, **fields} for id_, claim_no in fences]
    return {"batch": as_batch(rows if fields else fences), "worker": WORKER}


LONG_PAST_THE_HEAD: Place = (9, datetime(2020, 1, 3, tzinfo=UTC), 0)

CLAIMS = {
    "at the head": claim(),
    "for one puller": claim(wanted=1, held=1),
    "ahead": claim(wanted=10, ahead=1_000, held=1_000),
    "behind a mark": claim(wanted=10, ahead=200, after=LONG_PAST_THE_HEAD, held=500),
}

SETTLING = {
    "complete": Call(settling.complete(), batch()),
    "remove": Call(settling.remove(), batch()),
    "close": Call(settling.close(), batch(status=FAILED, failed=1, error={"class": "ValueError"})),
    "put_back": Call(settling.put_back(), batch(failed=1, lapsed=0, forgiven=False, delay=5.0)),
    "renew": Call(settling.renew(), batch() | {"lease": 30.0}),
    "still_ours": Call(settling.still_ours(), batch()),
}
FENCE = fencing.fence(LEASED_ID, WORKER, 1)
ONE_BY_ONE = {
    "complete_one": Call(fencing.complete_one(), FENCE),
    "remove_one": Call(fencing.remove_one(), FENCE),
    "checkpoint_one": Call(fencing.checkpoint_one(), FENCE | {"lease": 30.0}),
    "hand_over_key": Call(fencing.hand_over_key(), FENCE),
    "cancel": Call(changing.cancel(), {"job_id": LEASED_ID}),
    "retry": Call(changing.retry(), {"job_id": LEASED_ID}),
}
LOOK = Call(
    claiming.look(), {key: claim().parameters[key] for key in ("names", "after_priority", "after_due", "after_id")}
)
PROMOTE = Call(claiming.promote(), {"limit": PROMOTE_LIMIT})


def by_name(calls: dict[str, Call]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", calls.values(), ids=calls.keys())


@asynccontextmanager
async def seeded(server: Any, *scripts: str) -> AsyncIterator[str]:
    """The URL of a migrated database in which these scripts ran, one after the other."""
    async with server.fresh(server.template) as url:
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            for script in scripts:
                await driver.execute(script)
        await engine.dispose()
        yield url


async def explain(engine: AsyncEngine, call: Call, *, mode: str, analyze: bool = False) -> dict[str, Any]:
    """The plan of a statement, as the worker's driver sends it: prepared, with parameters."""
    statement, arguments = await as_sent(engine, call)
    options = "ANALYZE, BUFFERS, FORMAT JSON" if analyze else "FORMAT JSON"
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        transaction = driver.transaction()
        await transaction.start()
        try:
            await driver.execute(f"SET LOCAL plan_cache_mode = {mode}")
            # Or a sequential scan would begin where the last one ended, and be quick by luck.
            await driver.execute("SET LOCAL synchronize_seqscans = off")
            await driver.execute(f"PREPARE worker_statement AS {statement}")
            using = f"({', '.join(map(literal, arguments))})" if arguments else ""
            ((plan,),) = await driver.fetch(f"EXPLAIN ({options}) EXECUTE worker_statement{using}")
        finally:
            await transaction.rollback()
            await driver.execute("DEALLOCATE worker_statement")
    return plan[0]["Plan"]


async def as_sent(engine: AsyncEngine, call: Call) -> tuple[str, tuple[Any, ...]]:
    """The text and the arguments in the order in which the driver gets them."""
    sent = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: tuple[Any, ...], *_: Any) -> None:
        sent.append((statement, parameters))

    async with engine.connect() as connection:
        event.listen(engine.sync_engine, "before_cursor_execute", note)
        try:
            await connection.execute(call.statement, call.parameters)
        finally:
            event.remove(engine.sync_engine, "before_cursor_execute", note)
            await connection.rollback()
    statement, arguments = sent[-1]  # the first connection also says BEGIN or asks for the version
    return statement, tuple(arguments)


def literal(value: object) -> str:
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, bool | int | float) else "'" + str(value).replace("'", "''") + "'"


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def on_jobs(plan: dict[str, Any]) -> set[tuple[str, str | None]]:
    """How the jobs are reached: each kind of scan with its index."""
    found = set()
    for node in nodes(plan):
        if node.get("Relation Name") == "queue_kit_job" and node["Node Type"] != "ModifyTable":
            found.add((node["Node Type"], node.get("Index Name")))
        if node["Node Type"] == "Bitmap Index Scan":
            found.add((node["Node Type"], node["Index Name"]))
    return found


def kinds(plan: dict[str, Any]) -> set[str]:
    return {node["Node Type"] for node in nodes(plan)}


READY_THEN_POINTERS = {("Index Scan", "queue_kit_job_ready"), ("Tid Scan", None)}
SORTS = {"Sort", "Incremental Sort"}
