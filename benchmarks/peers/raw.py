"""Not a queue but the ceiling: the plainest loop that one can write on asyncpg. It claims a thousand rows, runs their
handlers at once, and deletes them on a second connection while it claims the next thousand."""

import asyncio
import json

import asyncpg

from benchmarks.peers import Note, Queue

TABLES = """
CREATE TABLE raw_job (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, due timestamptz NOT NULL DEFAULT now(),
    taken boolean NOT NULL DEFAULT false, payload jsonb NOT NULL
);
CREATE INDEX raw_job_ready ON raw_job (due, id) WHERE NOT taken
"""
CLAIM = """
UPDATE raw_job SET taken = true WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM raw_job WHERE NOT taken AND due <= now() ORDER BY due, id LIMIT 1000 FOR UPDATE SKIP LOCKED
)) RETURNING id, payload
"""
INSERT = "INSERT INTO raw_job (payload) VALUES ($1) RETURNING id"
INSERT_AND_NOTIFY = f"WITH added AS ({INSERT}) SELECT pg_notify('raw', '') FROM added"


class Raw(Queue):
    """With `wakes`, an insert notifies."""

    packages = ("asyncpg",)
    setting = "batches of 1000, deletes overlapped; no retries, no leases, no order but age"
    unfinished = "SELECT count(*) FROM raw_job"

    def __init__(self, url: str, *, wakes: bool = False) -> None:
        super().__init__(url)
        self.insert = INSERT_AND_NOTIFY if wakes else INSERT

    async def install(self) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(TABLES)
        await connection.close()

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.url)

    async def close(self) -> None:
        await self.connection.close()

    async def add(self, number: int) -> None:
        await self.connection.execute(self.insert, json.dumps({"i": number}))

    async def add_many(self, numbers: range) -> None:
        rows = [(json.dumps({"i": number}),) for number in numbers]
        await self.connection.copy_records_to_table("raw_job", columns=("payload",), records=rows)

    async def work(self, note: Note) -> None:
        claiming, deleting = await asyncpg.connect(self.url), await asyncpg.connect(self.url)
        wake = asyncio.Event()
        await claiming.add_listener("raw", lambda *_: wake.set())

        async def no_op(payload: str) -> None:
            note(json.loads(payload)["i"])

        deleted: asyncio.Future[str] | None = None
        while True:
            wake.clear()
            rows = await claiming.fetch(CLAIM)
            await asyncio.gather(*(no_op(row["payload"]) for row in rows))
            if deleted is not None:
                await deleted
            deleted = asyncio.ensure_future(
                deleting.execute("DELETE FROM raw_job WHERE id = ANY($1)", [row["id"] for row in rows])
            )
            if not rows:
                await wake.wait()


QUEUE = Raw
