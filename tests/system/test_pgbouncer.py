"""Workers and enqueuers behind a PgBouncer that lends its few server connections for one transaction at a time."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from queue_kit import (
    ConfigurationError,
    CronJob,
    JobRow,
    JobState,
    QueueWorker,
    add_job,
    cancel_job,
    migrate,
    register_cron_jobs,
)
from queue_kit.cli import main
from tests.conftest import Server
from tests.crowd import SHARING, crowd
from tests.database.running import Gate, listening, raw
from tests.faults.upgrading import Next, builders, is_waited_for
from tests.postgres import unprivileged
from tests.support import (
    ADD_EFFECT,
    NO_CACHES,
    Recorder,
    all_complete,
    count_jobs,
    effects,
    free_port,
    make_effects,
    row_of,
    until,
)

POOL_SIZE = 3


SETTINGS = """
[databases]
* = {server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 500
"""

BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(BINARY is None, reason="there is no pgbouncer on PATH or in /usr/sbin")


class PgBouncer:
    """A pooler in front of the tests' server."""

    def __init__(self, server: URL, folder: Path, **settings: object) -> None:
        self.port = free_port()
        reached = {
            "host": server.query.get("host") or server.host,
            "port": server.port or 5432,
            "user": server.username,
            "password": server.password,
        }
        words = " ".join(f"{name}={value}" for name, value in reached.items() if value)
        ini = SETTINGS.format(server=words, port=self.port, pool_size=POOL_SIZE)
        self._ini = folder / "pgbouncer.ini"
        self._ini.write_text(ini + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, url: str) -> str:
        """The way through the pooler to the database of `url`."""
        pooled = make_url(url).set(host="127.0.0.1", port=self.port, query={})
        return pooled.render_as_string(hide_password=False)

    async def start(self) -> None:
        assert BINARY is not None
        log = subprocess.DEVNULL
        self._process = subprocess.Popen([BINARY, "-q", self._ini], cwd="/", stdout=log, stderr=log, **unprivileged())

        async def answers() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self._ini.read_text()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return True
            return False

        await until(answers)

    def kill(self) -> None:
        """As a crash does: its clients' and its server's connections break."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def restart(self) -> None:
        self.kill()
        await self.start()


@contextlib.asynccontextmanager
async def pgbouncer(server: Server, **settings: object) -> AsyncIterator[PgBouncer]:
    folder = Path(tempfile.mkdtemp(prefix="qk-pgb-"))
    try:
        made = PgBouncer(make_url(server.url), folder, **settings)
        folder.chmod(0o755)  # for the user that it runs as
        try:
            await made.start()
            yield made
        finally:
            made.kill()
    finally:
        shutil.rmtree(folder)


def version() -> tuple[int, ...]:
    said = subprocess.run([str(BINARY), "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()[1].split(".")[:2]))


@pytest.fixture
async def bouncer(server: Server) -> AsyncIterator[PgBouncer]:
    async with pgbouncer(server) as made:
        yield made


@pytest.fixture
async def pooled(bouncer: PgBouncer, pg_engine: AsyncEngine, postgres_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine through the pooler to the database of `pg_engine`, which goes there directly."""
    engine = create_async_engine(bouncer.url(postgres_url), connect_args=NO_CACHES, pool_pre_ping=True)
    await make_effects(pg_engine)
    yield engine
    await engine.dispose()


async def write(event: Any, session: Any, job: Any) -> None:
    await session.execute(ADD_EFFECT, {"job_id": job.id})


async def completed(engine: AsyncEngine, *job_ids: int | None) -> None:
    async def complete() -> bool:
        ids = [job_id for job_id in job_ids if job_id is not None]
        return await count_jobs(engine, JobRow.id.in_(ids), JobRow.state == JobState.completed.value) == len(ids)

    await until(complete)


# --- how a worker hears of jobs ---------------------------------------------------------------------------------------


async def test_n8_a_worker_that_listens_directly_starts_and_cancels_jobs_at_once(pooled, pg_engine):
    gate, recorder = Gate(), Recorder()
    never = {"poll_interval": 600, "lease": 600}
    handlers = {"write": write, "gate": gate}
    async with QueueWorker(pooled, handlers, listen=pg_engine, hooks=[recorder], parallel_count=3, **never):
        await until(lambda: listening(pg_engine))
        first = await add_job(pooled, "write")
        async with AsyncSession(pooled) as session, session.begin():
            await session.execute(text("SELECT 1"))
            second = await add_job(session, "write")
        await completed(pg_engine, first, second)
        endless = await add_job(pooled, "gate")
        await until(lambda: endless in gate.running)
        assert await cancel_job(pooled, endless) is JobState.running
        await until(lambda: "cancelled" in recorder.verdicts)
    assert await effects(pg_engine) == [first, second]


async def test_a_worker_whose_listen_hears_nothing_says_so(pooled, caplog):
    recorder = Recorder()
    async with QueueWorker(pooled, {"write": write}, poll_interval=0.1, hooks=[recorder]):
        await until(lambda: "pass listen= an engine" in caplog.text)
        await until(lambda: recorder.listener == ["polling"])


@pytest.mark.parametrize("listen", [False, True], ids=["polling", "a LISTEN that hears nothing"])
async def test_n8_without_a_direct_listener_polling_starts_the_jobs(pooled, pg_engine, listen):
    async with QueueWorker(pooled, {"write": write}, listen=listen, poll_interval=0.1, parallel_count=3):
        ids = [await add_job(pooled, "write") for _ in range(5)]
        await completed(pg_engine, *ids)
    assert await effects(pg_engine) == ids


# --- what a handler may do --------------------------------------------------------------------------------------------


async def test_a_handlers_transaction_stays_on_one_server_connection_and_a_checkpoint_holds(pooled, pg_engine):
    backends: list[set[int]] = []

    async def checkpoint(event: Any, session: Any, job: Any) -> None:
        seen = {(await session.execute(text("SELECT pg_backend_pid()"))).scalar_one() for _ in range(5)}
        backends.append(seen)
        await session.execute(ADD_EFFECT, {"job_id": job.id})
        await session.commit()
        if job.retry_count < 2:
            await session.execute(ADD_EFFECT, {"job_id": -job.id})
            raise LookupError("what came after the checkpoint is undone")

    options = {"parallel_count": 8, "max_retry_count": 3, "retry_delay": 0.05, "poll_interval": 0.1}
    async with QueueWorker(pooled, {"checkpoint": checkpoint}, listen=False, **options):
        ids = [await add_job(pooled, "checkpoint") for _ in range(8)]
        await completed(pg_engine, *ids)
    assert [len(each) for each in backends] == [1] * 24
    assert 1 < len(set().union(*backends)) <= POOL_SIZE
    assert await effects(pg_engine) == sorted(ids * 3)
    assert {(await row_of(pg_engine, job_id)).retry_count for job_id in ids} == {2}


async def test_a_lease_is_renewed_while_a_handler_holds_a_transaction(pooled, pg_engine):
    gate = Gate()

    async def hold(event: Any, session: Any, job: Any) -> None:
        await write(event, session, job)
        await gate(event, session, job)

    async with QueueWorker(pooled, {"hold": hold}, listen=False, poll_interval=0.1, lease=3.0):
        job_id = await add_job(pooled, "hold")
        await until(lambda: gate.running)
        first = (await row_of(pg_engine, job_id)).lease_until

        async def is_two_leases_on() -> bool:
            return ((await row_of(pg_engine, job_id)).lease_until - first).total_seconds() > 6.0

        await until(is_two_leases_on)
        gate.open.set()
        await completed(pg_engine, job_id)
    row = await row_of(pg_engine, job_id)
    assert (row.claim_no, row.lost) == (1, 0)
    assert await effects(pg_engine) == [job_id]


async def test_of_many_who_add_one_key_at_once_one_succeeds(pooled, pg_engine):
    ids = await asyncio.gather(*(add_job(pooled, "write", unique_key="one") for _ in range(20)))
    (job_id,) = {each for each in ids if each is not None}
    assert ids.count(None) == 19
    async with QueueWorker(pooled, {"write": write}, listen=False, poll_interval=0.1):
        await completed(pg_engine, job_id)
    assert await add_job(pooled, "write", unique_key="one") not in (None, job_id)


async def test_a_cron_job_runs_each_of_its_ticks_once(pooled, pg_engine):
    await register_cron_jobs(pooled, [CronJob("tick", "* * * * * *")])

    def worker() -> QueueWorker:
        return QueueWorker(pooled, {"tick": write}, listen=False, poll_interval=0.1)

    async def three_ran() -> bool:
        return len(await effects(pg_engine)) >= 3

    async with worker(), worker():
        await until(three_ran)
    ticks = [tick for (tick,) in await raw(pg_engine, "SELECT cron_tick FROM queue_kit_job WHERE status = 2")]
    assert len(ticks) == len(set(ticks)) == len(await effects(pg_engine))


async def test_the_tables_are_made_through_the_pooler(bouncer, empty_postgres_url):
    engine = create_async_engine(bouncer.url(empty_postgres_url), connect_args=NO_CACHES)
    for _ in range(2):
        await migrate.upgrade(engine)
    assert await migrate.schema_version(engine) == migrate.VERSION
    await engine.dispose()


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("pool_size", [1, 2, 20])
async def test_migrations_at_once_build_indexes_one_after_the_other(
    server, pg_engine, postgres_url, monkeypatch, pool_size, count
):
    monkeypatch.setattr("queue_kit._indexes.PATIENCE", 1.0)
    await migrate.downgrade(pg_engine, to=1)
    async with pgbouncer(server, default_pool_size=pool_size) as bouncer, pg_engine.connect() as user:
        url = bouncer.url(postgres_url)
        engines = [create_async_engine(url, connect_args=NO_CACHES) for _ in range(count)]
        migrating = asyncio.gather(*map(migrate.upgrade, engines))
        if pool_size > 1:  # they build beside writers
            await user.execute(text("INSERT INTO queue_kit_job (name) VALUES ('a')"))
            await until(lambda: builders(pg_engine))
            await user.rollback()
        async with asyncio.timeout(30):
            await migrating
        for engine in engines:
            await engine.dispose()
    assert await migrate.schema_version(pg_engine) == migrate.VERSION
    valid = "SELECT indisvalid FROM pg_index WHERE indrelid = 'queue_kit_job'::regclass"
    assert {made for (made,) in await raw(pg_engine, valid)} == {True}
    names = "SELECT count(*) FROM pg_indexes WHERE indexname IN ('queue_kit_job_key', 'queue_kit_job_cancelled')"
    assert await raw(pg_engine, names) == [(2,)]


async def test_what_the_server_still_builds_for_a_killed_migration_is_waited_for(
    bouncer, pg_engine, postgres_url, tmp_path
):
    await is_waited_for(pg_engine, Next(tmp_path, bouncer.url(postgres_url)))


async def test_an_index_that_is_half_built_is_not_taken_for_whole(server, pg_engine, postgres_url, monkeypatch):
    monkeypatch.setattr("queue_kit._indexes.PATIENCE", 1.0)
    await migrate.downgrade(pg_engine, to=1)
    await raw(pg_engine, "INSERT INTO queue_kit_job (name, status) VALUES ('a', 4), ('a', 4)")
    direct = create_async_engine(postgres_url, isolation_level="AUTOCOMMIT")
    async with direct.connect() as connection:
        with pytest.raises(DBAPIError):
            await connection.execute(
                text("CREATE UNIQUE INDEX CONCURRENTLY queue_kit_job_cancelled ON queue_kit_job (name)")
            )
    await direct.dispose()
    async with pgbouncer(server, default_pool_size=1) as bouncer:
        engine = create_async_engine(bouncer.url(postgres_url), connect_args=NO_CACHES)
        with pytest.raises(ConfigurationError, match="queue_kit_job_cancelled was left half built"):
            await migrate.upgrade(engine)
        await engine.dispose()
    assert await migrate.schema_version(pg_engine) == 1
    await migrate.upgrade(pg_engine)
    assert await migrate.schema_version(pg_engine) == migrate.VERSION


async def test_the_command_line_needs_no_arguments_for_a_pooler(bouncer, postgres_url):
    for _ in range(3):
        command = ["insights", "--database-url", bouncer.url(postgres_url)]
        result = await asyncio.to_thread(CliRunner().invoke, main, command)
        assert (result.exit_code, result.stderr) == (0, "")


# --- many processes, and a pooler that is killed ----------------------------------------------------------------------


async def test_n8_nothing_is_lost_or_done_twice_when_the_pooler_is_killed_under_load(
    bouncer, pooled, pg_engine, postgres_url
):
    await raw(pg_engine, "CREATE TABLE ordered (job_id BIGINT)")
    broken: list[BaseException] = []

    async def order(count: int) -> None:
        """Whether a broken commit took place is open, but the job and the order are there together or not at all."""
        while count:
            try:
                async with AsyncSession(pooled) as session, session.begin():
                    job_id = await add_job(session, "write")
                    await session.execute(text("INSERT INTO ordered VALUES (:job_id)"), {"job_id": job_id})
                count -= 1
            except (DBAPIError, OSError) as error:
                broken.append(error)
                await asyncio.sleep(0.05)

    async with crowd(SHARING, bouncer.url(postgres_url)) as workers:
        options = {"pooled": "yes", "listen": postgres_url, "lease": 2, "poll_interval": 0.2}
        for _ in range(3):
            await workers.start(**options)
        for worker in workers.all:
            await worker.says("started")
        orders = [asyncio.create_task(order(40)) for _ in range(6)]
        for reached in (30, 90):

            async def enough() -> bool:
                return len(await effects(pg_engine)) >= reached  # noqa: B023

            await until(enough)
            await bouncer.restart()
        await asyncio.gather(*orders)
        assert broken
        await all_complete(pg_engine, seconds=30)
        assert await asyncio.gather(*(worker.stop() for worker in workers.all)) == [0] * 3
    ordered = [job_id for (job_id,) in await raw(pg_engine, "SELECT job_id FROM ordered ORDER BY job_id")]
    assert len(ordered) >= 240
    assert await effects(pg_engine) == ordered
    assert await count_jobs(pg_engine) == len(ordered)
    assert await count_jobs(pg_engine, JobRow.state == JobState.completed.value) == len(ordered)
    assert min(worker.count("completed") for worker in workers.all) > 0


# --- prepared statements ----------------------------------------------------------------------------------------------


async def test_an_engine_with_the_drivers_caches_is_told_what_to_do(server, postgres_url):
    """Unless the pooler follows prepared statements, which it can from 1.21 on."""
    settings = {"max_prepared_statements": 0} if version() >= (1, 21) else {}
    async with pgbouncer(server, **settings) as bouncer:
        engine = create_async_engine(bouncer.url(postgres_url))
        async with engine.connect() as one, engine.connect() as other:
            await one.execute(text("SELECT 1"))
            await one.rollback()
            await other.execute(text("SELECT 2"))  # takes the server connection that knows the statement
            with pytest.raises(DBAPIError, match="does not exist") as caught:
                await one.execute(text("SELECT 1"))
            assert caught.value.orig is not None
            said = str(caught.value.orig.__cause__)  # the driver's own, as a traceback shows it
            assert "pgbouncer" in said
            assert "set statement_cache_size to 0" in said
            await one.invalidate()
        await engine.dispose()


@pytest.mark.skipif(BINARY is not None and version() < (1, 21), reason="this PgBouncer follows no prepared statements")
async def test_a_pooler_that_follows_prepared_statements_needs_no_arguments(bouncer, pg_engine, postgres_url):
    await make_effects(pg_engine)
    engine = create_async_engine(bouncer.url(postgres_url))
    async with QueueWorker(engine, {"write": write}, listen=False, poll_interval=0.1, parallel_count=8):
        ids = await asyncio.gather(*(add_job(engine, "write") for _ in range(60)))
        await completed(pg_engine, *ids)
    assert await effects(pg_engine) == sorted(ids)
    await engine.dispose()
