"""Hostile input and secrets: payloads that ask to be imported, names that ask to be SQL, passwords that a server
refuses, and roles that may do one thing only.

Each test has a canary: a file that a payload would write, a table that a name would drop, a password that a log would
show. It is made sure of that the canary could have died.
"""

import asyncio
import base64
import contextlib
import importlib
import logging
import os
import pickle
import re
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy import URL, inspect, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import (
    CronJob,
    Handlers,
    InvalidCron,
    InvalidJob,
    Job,
    JobState,
    NewJob,
    QueueWorker,
    add_job,
    add_jobs,
    cancel_job,
    cancel_jobs,
    failure_groups,
    get_job,
    job_queue_insights,
    list_cron_jobs,
    list_jobs,
    list_workers,
    migrate,
    pause_cron_job,
    queue_insights,
    register_cron_jobs,
    resume_cron_job,
    retry_job,
    retry_jobs,
    run_cron_job,
    throughput,
)
from queue_kit._health import examine
from queue_kit.cli import main
from queue_kit.contrib.sessions import LeakedSession, session_jobs
from queue_kit.dashboard import Access, dashboard
from tests.conftest import Server
from tests.crowd import running
from tests.database.clock import far, make_due
from tests.database.running import nothing, raw
from tests.database.session_stores import Cart, cart_store, move_back
from tests.postgres import postgres
from tests.support import Recorder, is_completed, row_of, until

CHECKOUT = Path(__file__).parents[2]
SECRET = "Tr0ub4dor/&3"  # pragma: allowlist secret


# --- S4: a payload is data --------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a module named `trap_module` writes when it is imported, and a call in it as well."""
    sprung = tmp_path / "sprung"
    (tmp_path / "trap_module.py").write_text(
        f"import pathlib\ndef spring(*_):\n    pathlib.Path({str(sprung)!r}).touch()\nspring()\nclass Trap: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield sprung
    sys.modules.pop("trap_module", None)


class Bomb:
    """Pickled, it writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def crafted(sprung: Path) -> list[dict[str, Any]]:
    bomb = pickle.dumps(Bomb(sprung))
    return [
        {"py/object": "trap_module.Trap"},
        {"py/reduce": [{"py/function": "trap_module.spring"}, {"py/tuple": []}]},
        {"py/repr": "trap_module/trap_module.spring()"},
        {"__class__": "trap_module.Trap", "__module__": "trap_module", "__init__": {}},
        {"__reduce__": ["trap_module.spring", []], "__setstate__": {}},
        {"@type": "trap_module.Trap", "$type": "trap_module.Trap, trap_module", "class": "trap_module:Trap"},
        {"$ref": f"file://{sprung}", "$import": "trap_module"},
        {"pickle": base64.b64encode(bomb).decode(), "latin": bomb.decode("latin-1").replace("\0", "")},
        {"yaml": "!!python/object/apply:trap_module.spring []", "toml": "a = @trap_module"},
        {"expression": "__import__('trap_module')", "template": "{{ trap_module }} ${trap_module} %(trap_module)s"},
        {"cls": "trap_module.Trap"},
    ]


@dataclass
class Typed:
    cls: str = ""


async def test_s4_a_payload_that_names_code_stays_data(engine, trap):
    payloads = crafted(trap)
    jobs, given = Handlers(), []

    @jobs.handler("plain", max_retry_count=1)
    async def plain(event, session, job):
        given.append(job.data)

    @jobs.handler("typed", max_retry_count=1)
    async def typed(event, session, job: Job[Typed]):
        given.append(job.data)

    await add_jobs(engine, [NewJob("plain", payload) for payload in payloads])
    await add_jobs(engine, [NewJob("typed", payload) for payload in payloads])
    counts = await QueueWorker(engine, jobs).drain()
    assert counts["completed"] == 2 * len(payloads)
    assert [data for data in given if isinstance(data, dict)] == payloads
    assert {type(data) for data in given} == {dict, Typed}
    assert Typed("trap_module.Trap") in given
    assert not trap.exists()
    assert "trap_module" not in sys.modules
    pickle.loads(base64.b64decode(payloads[7]["pickle"]))
    assert trap.exists()


async def test_s4_a_name_that_names_code_runs_nothing(engine, trap):
    names = ["trap_module:spring", "trap_module.spring", "trap_module", "os.system", "builtins.exec", "__main__"]
    jobs = Handlers()
    jobs.add("known", nothing)
    ids = await add_jobs(engine, [NewJob(name, {"args": ["trap_module"]}) for name in names])
    await add_job(engine, "known")
    assert (await QueueWorker(engine, jobs).drain())["completed"] == 1
    assert [(await row_of(engine, job_id)).claim_no for job_id in ids] == [0] * len(names)
    assert not trap.exists()
    assert "trap_module" not in sys.modules
    importlib.import_module("trap_module")
    assert trap.exists()


@pytest.mark.parametrize("timezone", ["../../etc/passwd", "/etc/passwd", "trap_module", "UTC\n", ""])
def test_s4_a_time_zone_is_no_path(timezone):
    with pytest.raises(InvalidCron):
        CronJob("a", "@daily", timezone=timezone)


# --- S7: names are values ---------------------------------------------------------------------------------------------

NAMES = [
    "'; DROP TABLE canary; --",
    '"; DROP TABLE canary; --',
    "$$; DROP TABLE canary; $$",
    "x'); DELETE FROM canary; SELECT ('",
    "canary",
    "queue_kit_job",
    "$1",
    ":name",
    "%s%n%(name)s",
    "{0.__class__}",
    "\\",
    "\\'; DROP TABLE canary; --",
    "a\tb\r\nc",
    "\x1b[2J",
    "\u202eevitcaer",
    "🦊" * 50,
    "é" * 200,
    "x" * 64,
    "[1, 2]",
    '{"a": 1}',
    "NULL",
    " leading and trailing ",
    "A",
    "a",
]
REFUSED = ["", " \t", "x" * 201, "a\0b", "\ud800"]


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


@pytest.fixture
async def canary(engine: AsyncEngine) -> AsyncIterator[None]:
    """A table that whatever becomes SQL is meant to harm, and the list of all tables."""
    await raw(engine, "CREATE TABLE canary (alive INTEGER)")
    await raw(engine, "INSERT INTO canary VALUES (1)")
    before = await tables(engine)
    yield
    assert await raw(engine, "SELECT alive FROM canary") == [(1,)]
    assert await tables(engine) == before


async def test_s7_no_name_or_key_becomes_sql(engine, canary):
    jobs, ran, hook = Handlers(), [], Recorder()

    async def note(event, session, job):
        await session.execute(text("SELECT alive FROM canary"))
        ran.append(job.name)

    handlers = [jobs.add(name, note) for name in NAMES]
    typed = [
        await handler.add(engine, unique_key=f"1{name}"[:200]) for handler, name in zip(handlers, NAMES, strict=True)
    ]
    plain = await add_jobs(engine, [NewJob(name, {name: name}, unique_key=name) for name in NAMES])
    assert await add_jobs(engine, [NewJob(name, unique_key=name) for name in NAMES]) == [None] * len(NAMES)
    for name, first, second in zip(NAMES, typed, plain, strict=True):
        assert [row.id for row in await list_jobs(engine, name=name)] == [second, first]
        assert [row.id for row in await list_jobs(engine, unique_key=name)] == [second]
        assert (await list_jobs(engine, name=name))[0].data == {name: name}
        assert await cancel_job(engine, second) is JobState.cancelled
        await retry_job(engine, second)
        assert (await cancel_jobs(engine, name=name)).changed == 2
        assert (await retry_jobs(engine, state=JobState.cancelled, name=name)).changed == 2
        assert (await retry_jobs(engine, name=name, error_class=name, message=name)).changed == 0
        assert await failure_groups(engine, name=name) == []
    plan = await register_cron_jobs(engine, [CronJob(name, far(), data={name: name}) for name in NAMES])
    assert set(plan.added) == set(NAMES)
    for name in NAMES:
        await pause_cron_job(engine, name)
        await resume_cron_job(engine, name)
        await make_due(engine, name)
        due = await run_cron_job(engine, name)
        assert (await list_jobs(engine, cron_name=name))[0].id == due
    async with QueueWorker(engine, jobs, included_names=NAMES, poll_interval=0.1, hooks=[hook]):
        await until(lambda: len(hook.settled) == 3 * len(NAMES))
    assert sorted(ran) == sorted(NAMES * 3)
    assert set(hook.verdicts) == {"completed"}
    assert set((await queue_insights(engine)).by_name) == set(NAMES)
    assert set((await register_cron_jobs(engine, [])).removed) == set(NAMES)


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
async def test_s7_what_no_database_stores_is_refused_by_its_field(engine, canary, name):
    with pytest.raises(InvalidJob, match=r"^name: "):
        await add_job(engine, name)
    with pytest.raises(InvalidJob, match=r"^unique_key: "):
        await add_job(engine, "a", unique_key=name)
    with pytest.raises((InvalidJob, InvalidCron)):
        await register_cron_jobs(engine, [CronJob(name, "@daily")])
    assert await list_jobs(engine, name=name) == []
    assert await list_jobs(engine) == []


@pytest.mark.parametrize("value", ["1; DROP TABLE canary", "1 OR 1=1", 1.0, True, None])
async def test_s7_an_id_is_an_integer(engine, canary, value):
    for function in (get_job, cancel_job, retry_job):
        with pytest.raises(TypeError):
            await function(engine, value)
    for bound in ({"after": value or "1"}, {"limit": value}):
        with pytest.raises((TypeError, ValueError)):
            await list_jobs(engine, **bound)


@pytest.mark.parametrize("name", [name for name in NAMES if "DROP" in name or "DELETE" in name])
async def test_s7_the_command_line_takes_a_databases_name_as_a_name(server, tmp_path, name):
    url = make_url(server.url).set(database=name).render_as_string(hide_password=False)
    told = await asyncio.to_thread(CliRunner().invoke, main, ["check", "--database-url", url])
    assert (told.exit_code, "does not exist" in told.output) == (1, True), told.output
    url = URL.create("sqlite", database=str(tmp_path / name)).render_as_string()
    told = await asyncio.to_thread(CliRunner().invoke, main, ["migrate", "--database-url", url])
    assert told.exit_code == 0, told.output
    assert (tmp_path / name).exists()


# --- roles ------------------------------------------------------------------------------------------------------------

ROLES = ("app_enqueue", "app_worker", "app_read", "app_migrate")


def grants() -> list[list[str]]:
    """The blocks of statements that SECURITY.md gives."""
    blocks = re.findall(r"```sql\n(.*?)```", (CHECKOUT / "SECURITY.md").read_text(), re.DOTALL)
    return [re.findall(r"^GRANT .*?;$", block, re.MULTILINE) for block in blocks]


class Roles:
    """The roles of SECURITY.md, under names of their own, in one database."""

    def __init__(self, url: str, prefix: str) -> None:
        self.owner = create_async_engine(url)
        self._names = {role: f"{prefix}_{uuid4().hex[:8]}_{role}" for role in ROLES}
        self._engines = {
            role: create_async_engine(make_url(url).set(username=name, password="x"))
            for role, name in self._names.items()
        }

    def __getitem__(self, role: str) -> AsyncEngine:
        return self._engines[f"app_{role}"]

    async def create(self) -> None:
        """Make the roles as SECURITY.md says: the tables belong to the migrator, who gives the rest."""
        for name in self._names.values():
            await raw(self.owner, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
        before, after = grants()
        await self.execute(self.owner, before)
        await migrate.upgrade(self["migrate"])
        await self.execute(self["migrate"], after)

    async def execute(self, engine: AsyncEngine, statements: list[str]) -> None:
        for statement in statements:
            await raw(engine, re.sub("|".join(ROLES), lambda found: self._names[found[0]], statement))

    async def drop(self) -> None:
        for engine in self._engines.values():
            await engine.dispose()
        for name in self._names.values():
            await raw(self.owner, f"DROP OWNED BY {name} CASCADE")
            await raw(self.owner, f"DROP ROLE {name}")
        await self.owner.dispose()


@pytest.fixture
async def roles(server: Server, empty_postgres_url: str) -> AsyncIterator[Roles]:
    made = Roles(empty_postgres_url, server.prefix)
    may = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
    if await raw(made.owner, may) != [(True,)]:
        await made.owner.dispose()
        pytest.skip("the tests' user is no superuser, so it cannot make roles")
    try:
        await made.create()
        yield made
    finally:
        await made.drop()


async def refused(engine: AsyncEngine, *statements: str) -> None:
    """Each of the statements is beyond the role's rights."""
    for statement in statements:
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
            await raw(engine, statement)


async def test_s7_each_role_does_its_work(roles, caplog):
    caplog.set_level(logging.WARNING, "queue_kit")
    jobs, hook = Handlers(), Recorder()

    @jobs.handler("fails", max_retry_count=2, retry_delay=0.01)
    async def fails(event, session, job):
        raise ValueError("as it should")

    async def works(event, session, job):
        await session.execute(text("SELECT 1"))
        await add_job(session, "later", delay=1_000)

    for name in ("works", "tick"):
        jobs.add(name, works)
    first = await add_job(roles["enqueue"], "works", {"a": 1}, unique_key="k")
    assert await add_job(roles["enqueue"], "works", unique_key="k") is None
    await add_jobs(
        roles["enqueue"], [NewJob("fails"), NewJob("works", delay=0.1, handler_timeout=5, max_retry_count=3)]
    )
    await register_cron_jobs(roles["worker"], [CronJob("tick", far())])
    await make_due(roles["worker"], "tick")
    async with QueueWorker(roles["worker"], jobs, poll_interval=0.1, hooks=[hook]) as worker:
        await until(lambda: len(hook.settled) == 5)
        assert worker.healthy
    assert sorted(hook.verdicts) == ["completed", "completed", "completed", "failed", "retried"]
    assert [record.message for record in caplog.records if "fails" not in record.message] == []
    (failed,) = await list_jobs(roles["read"], state=JobState.failed)
    assert (await get_job(roles["read"], first)).is_complete
    assert (await queue_insights(roles["read"])).by_name["later"].scheduled == 3
    await retry_job(roles["worker"], failed.id)
    assert await cancel_job(roles["worker"], failed.id) is JobState.cancelled
    assert [each.name for each in await list_cron_jobs(roles["read"])] == ["tick"]
    assert [group.error_class for group in await failure_groups(roles["read"])] == []
    assert await list_workers(roles["read"]) == []
    assert len(await throughput(roles["read"])) == 60
    assert await raw(roles["read"], "SELECT sum(completed), sum(failed) FROM queue_kit_history") == [(3, 1)]
    assert "indexes" in {finding.about for finding in await examine(roles["read"]) if finding.ok}
    await run_cron_job(roles["worker"], "tick")
    await pause_cron_job(roles["worker"], "tick")
    await resume_cron_job(roles["worker"], "tick")
    assert (await retry_jobs(roles["worker"], [failed.id])).changed == 1
    assert (await cancel_jobs(roles["worker"], name="fails")).changed == 1
    async with roles["read"].connect() as connection:
        await migrate.check_schema(connection)


async def test_s7_the_dashboard_reads_as_who_only_reads_and_acts_as_a_worker(roles):
    await add_job(roles["enqueue"], "later", delay=1_000)

    async def pressed(role: str) -> tuple[int, str]:
        app = dashboard(roles[role], authorize=lambda _: Access("ada", act=True))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as ada:
            for path in ("/", "/jobs", "/jobs/1", "/names", "/cron", "/workers", "/jobs/confirm?action=retry&name=x"):
                assert (await ada.get(path)).status_code == 200, path
            token = re.findall(r'name="token" value="(\w+)"', (await ada.get("/jobs/1")).text)[0]
            headers = {"sec-fetch-site": "same-origin"}
            answer = await ada.post("/jobs/1/cancel", data={"token": token}, headers=headers)
            return answer.status_code, answer.text

    status, text = await pressed("read")
    assert (status, "did not take the change" in text) == (503, True)
    assert "permission denied" not in text
    assert (await pressed("worker"))[0] == 303


async def test_s7_a_worker_that_may_not_write_history_works_on(roles, caplog):
    caplog.set_level(logging.WARNING, "queue_kit")
    await roles.execute(roles["migrate"], ["REVOKE ALL ON queue_kit_history FROM app_worker"])
    await add_job(roles["enqueue"], "works")

    async def works(event, session, job):
        await session.execute(text("SELECT 1"))

    assert (await QueueWorker(roles["worker"], {"works": works}).drain())["completed"] == 1
    (said,) = [record.message for record in caplog.records]
    assert "permission denied for table queue_kit_history" in said


async def test_s7_the_session_store_needs_what_its_document_says(roles):
    await migrate.upgrade(roles["migrate"], ["sessions"])
    statements = re.findall(r"^GRANT .*?;$", (CHECKOUT / "docs/sessions.md").read_text(), re.MULTILINE)
    assert len(statements) == 2
    await roles.execute(roles["migrate"], statements)
    application, store = roles["enqueue"], cart_store()
    pair = await store.create(application, Cart())
    session = await store.get(application, pair.access_token)
    await store.update(application, replace(session, data=Cart(["tea"])))
    await store.refresh_tokens(application, pair.refresh_token)
    await move_back(roles.owner, rotated_at=60)
    with pytest.raises(LeakedSession):
        await store.refresh_tokens(application, pair.refresh_token)
    await store.invalidate(application, session)
    await refused(application, "DELETE FROM queue_kit_session", "DELETE FROM queue_kit_session_token")
    assert (await QueueWorker(roles["worker"], session_jobs(store)).drain())["completed"] == 1
    assert await store.cleanup(roles["worker"], 0) == 2


async def test_s7_each_role_does_no_more(roles):
    await raw(roles.owner, "CREATE TABLE canary (alive INTEGER)")
    await add_job(roles["worker"], "hidden", {"card": "4111"})
    for role in ("enqueue", "worker", "read", "migrate"):
        await refused(roles[role], "SELECT * FROM canary", "DROP TABLE canary")
    for role in ("enqueue", "worker", "read"):
        await refused(
            roles[role],
            "DROP TABLE queue_kit_job",
            "ALTER TABLE queue_kit_job DISABLE TRIGGER ALL",
            "TRUNCATE queue_kit_job",
            "CREATE TABLE mine (id INTEGER)",
            "CREATE OR REPLACE FUNCTION queue_kit_job_notify() RETURNS trigger LANGUAGE sql AS 'SELECT 1'",
            "UPDATE queue_kit_schema SET version = 9",
            "SELECT * FROM queue_kit_alembic_version",
        )
    for role in ("enqueue", "read"):
        await refused(
            roles[role],
            "UPDATE queue_kit_job SET data = '{}'",
            "DELETE FROM queue_kit_job",
            "INSERT INTO queue_kit_job (name, status) VALUES ('x', 2)",
            "INSERT INTO queue_kit_job (name, cron_name) VALUES ('x', 'x')",
            "INSERT INTO queue_kit_job (name, worker_id) VALUES ('x', gen_random_uuid())",
            "INSERT INTO queue_kit_cron SELECT * FROM queue_kit_cron",
            "UPDATE queue_kit_worker SET idle_until = 'infinity'",
            "DELETE FROM queue_kit_history",
        )
    await refused(
        roles["enqueue"],
        "SELECT data FROM queue_kit_job",
        "SELECT errors FROM queue_kit_job",
        "SELECT name FROM queue_kit_job",
        "SELECT host FROM queue_kit_worker",
        "SELECT * FROM queue_kit_cron",
        "SELECT * FROM queue_kit_history",
    )
    await refused(roles["read"], "INSERT INTO queue_kit_job (name) VALUES ('x')")
    with pytest.raises(DBAPIError, match="permission denied"):
        await list_jobs(roles["enqueue"])
    with pytest.raises(DBAPIError, match="permission denied"):
        await add_job(roles["read"], "x")


async def test_s7_no_function_lends_its_owners_rights(pg_engine):
    assert await raw(pg_engine, "SELECT prosecdef FROM pg_proc WHERE proname LIKE 'queue_kit_%'") == [(False,)] * 2


async def test_s7_what_an_insert_sets_off_looks_nothing_up_in_the_callers_schemas(pg_engine):
    await raw(pg_engine, "CREATE SCHEMA trap CREATE TABLE queue_kit_worker (idle_until int)")
    await raw(
        pg_engine,
        "CREATE FUNCTION trap.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'trapped'; END $$",
    )
    settings = {"server_settings": {"search_path": "trap, pg_catalog, public"}}
    caller = create_async_engine(pg_engine.url, connect_args=settings)
    with pytest.raises(DBAPIError, match="trapped"):
        await raw(caller, "SELECT clock_timestamp()")
    await raw(caller, "INSERT INTO public.queue_kit_job (name) VALUES ('now')")
    await raw(caller, "INSERT INTO public.queue_kit_job (name, scheduled_at) VALUES ('later', 'infinity')")
    await caller.dispose()
    assert await raw(pg_engine, "SELECT name, status FROM queue_kit_job ORDER BY id") == [("now", 1), ("later", 0)]


# --- S8: secrets ------------------------------------------------------------------------------------------------------

MODULE = """
import os
from queue_kit import Handlers, QueueWorker
from sqlalchemy.ext.asyncio import create_async_engine

jobs = Handlers()

@jobs.handler("a")
async def a(event, session, job): ...

def worker():
    return QueueWorker(create_async_engine(os.environ["QUEUE_KIT_DATABASE_URL"]), jobs, poll_interval=0.1)
"""


class Guarded:
    """A server that asks for a password, and a database there."""

    def __init__(self, admin: AsyncEngine, url: URL) -> None:
        self._admin = admin
        self.url = url

    async def now_takes(self, password: str) -> None:
        """Change the password, and end every connection that was made with the last one."""
        await raw(self._admin, f"ALTER ROLE guarded PASSWORD '{password}'")
        await raw(self._admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guarded'")


@pytest.fixture(scope="module")
def asking_server() -> Iterator[URL]:
    """A server that asks one user for a password."""
    with postgres() as url:
        made = make_url(url)
        rules = Path(str(made.query["host"])) / "data" / "pg_hba.conf"
        rules.write_text(f"local all guarded scram-sha-256\n{rules.read_text()}")
        yield made


@pytest.fixture
async def guarded(asking_server: URL) -> AsyncIterator[Guarded]:
    admin = create_async_engine(asking_server)
    await raw(admin, "SELECT pg_reload_conf()")
    await raw(admin, f"CREATE ROLE guarded SUPERUSER LOGIN PASSWORD '{SECRET}'")
    await migrate.upgrade(admin)
    url = asking_server.set(username="guarded", password=SECRET)
    await until(lambda: refuses(url.set(password="wrong")))
    yield Guarded(admin, url)
    await migrate.downgrade(admin)
    await raw(admin, "DROP ROLE guarded")
    await admin.dispose()


async def refuses(url: URL) -> bool:
    """Whether the server asks for the password by now."""
    engine = create_async_engine(url)
    try:
        await raw(engine, "SELECT 1")
    except (DBAPIError, asyncpg.PostgresError):  # the latter with SQLAlchemy 2.0
        return True
    finally:
        await engine.dispose()
    return False


def holds_no_secret(told: str) -> bool:
    """Whether neither the password nor any part of it that a cut would leave is there."""
    return not any(form in told for form in (SECRET, "Tr0ub4dor", "Tr0ub4dor%2F%263"))


def command(
    *arguments: str, cwd: Path, url: URL, **options: Any
) -> contextlib.AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """A command of ours as a process."""
    environment = {**os.environ, "QUEUE_KIT_DATABASE_URL": url.render_as_string(hide_password=False)}
    return running(sys.executable, "-m", "queue_kit", *arguments, cwd=cwd, env=environment, **options)


async def end_of(*arguments: str, cwd: Path, url: URL) -> tuple[int, str]:
    async with (
        command(*arguments, cwd=cwd, url=url, stderr=asyncio.subprocess.STDOUT) as process,
        asyncio.timeout(30),
    ):
        told, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode()


async def test_s8_a_server_that_refuses_the_password_is_told_of_without_it(guarded, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "app_jobs.py").write_text(MODULE)
    await guarded.now_takes("another one")
    commands = (["migrate"], ["work", "app_jobs:worker"])
    ends = await asyncio.gather(*(end_of(*words, cwd=tmp_path, url=guarded.url) for words in commands))
    for words, (status, told) in zip(commands, ends, strict=True):
        assert status == 1, words
        assert "password authentication failed" in told, words
        assert "Traceback" not in told, words
        assert holds_no_secret(told), words
    engine = create_async_engine(guarded.url)
    worker = QueueWorker(engine, {"a": nothing})
    with pytest.raises(Exception, match="password authentication failed") as caught:
        await worker.start()
    await engine.dispose()
    assert holds_no_secret(f"{caught.getrepr(showlocals=False)} {caught.value!r} {engine!r} {worker!r} {caplog.text}")


async def test_s8_a_worker_whose_password_is_changed_waits_and_does_not_tell_it(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    engine, hook = create_async_engine(guarded.url, pool_pre_ping=True), Recorder()
    async with QueueWorker(engine, {"a": nothing}, poll_interval=0.1, hooks=[hook]) as worker:
        await guarded.now_takes("another one")
        await until(lambda: "database_down" in hook.states and not worker.healthy)
        assert await refuses(guarded.url)
        await guarded.now_takes(SECRET)
        await until(lambda: worker.healthy)
        await add_job(engine, "a")
        await until(lambda: hook.settled)
    await engine.dispose()
    assert holds_no_secret(caplog.text)
    assert holds_no_secret(repr([vars(record) for record in caplog.records]))


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="a process's title is read from /proc")
async def test_s8_a_running_worker_shows_no_password_in_its_title(guarded, tmp_path):
    (tmp_path / "app_jobs.py").write_text(MODULE)
    engine = create_async_engine(guarded.url)
    try:
        async with command("work", "app_jobs:worker", cwd=tmp_path, url=guarded.url) as process:
            done = await add_job(engine, "a")
            await until(lambda: is_completed(engine, done))
            about = Path(f"/proc/{process.pid}")
            titles = [entry.read_bytes() for entry in (about / "cmdline", about / "comm", *about.glob("task/*/comm"))]
            assert "Tr0ub4dor" in (about / "environ").read_bytes().decode()
            shown = "SELECT application_name, query FROM pg_stat_activity WHERE usename = 'guarded'"
            asked = await raw(engine, shown)
            assert asked
            process.terminate()
            async with asyncio.timeout(30):
                output, errors = await process.communicate()
    finally:
        await engine.dispose()
    assert process.returncode == 0
    assert holds_no_secret(f"{titles!r} {asked!r} {output.decode()} {errors.decode()}")


@pytest.mark.parametrize("in_a_group", [False, True])
async def test_s8_a_handlers_failed_statement_does_not_log_the_payload(engine, caplog, in_a_group):
    await raw(engine, "CREATE TABLE paid (card TEXT NOT NULL CHECK (card = ''))")
    jobs = Handlers()

    @jobs.handler("pay", max_retry_count=1)
    async def pay(event, session, job):
        paying = session.execute(text("INSERT INTO paid VALUES (:card)"), {"card": job.data["card"]})
        if in_a_group:
            async with asyncio.TaskGroup() as group:
                group.create_task(paying)
        else:
            await paying

    job_id = await add_job(engine, "pay", {"card": "4111-secret"})
    assert (await QueueWorker(engine, jobs).drain())["failed"] == 1
    assert ("ExceptionGroup" if in_a_group else "IntegrityError") in caplog.text
    assert "4111-secret" not in caplog.text
    (record,) = (await row_of(engine, job_id)).errors
    assert "[parameters: (" not in record["traceback"]
    assert "hide_parameters=True" in record["traceback"]
    assert "4111-secret" not in repr(record)


async def test_s8_a_refused_ending_does_not_log_the_payload(pg_engine, caplog):
    jobs = Handlers()
    jobs.add("pay", nothing)
    await raw(pg_engine, "ALTER TABLE queue_kit_job ADD CHECK (status < 2)")
    await add_job(pg_engine, "pay", {"card": "4111-secret"})
    assert (await QueueWorker(pg_engine, jobs, delete_job_on_completion=False).drain())["lost"] == 1
    assert "the ending of job" in caplog.text
    assert "violates check constraint" in caplog.text
    assert "4111-secret" not in caplog.text


async def test_s8_a_refused_cron_occurrence_does_not_log_the_payload(pg_engine, caplog):
    jobs, hook = Handlers(), Recorder()
    jobs.add("tick", nothing)
    await register_cron_jobs(pg_engine, [CronJob("tick", far(), data={"token": "4111-secret"})])
    await make_due(pg_engine, "tick")
    await raw(pg_engine, "ALTER TABLE queue_kit_job ADD CHECK (status > 0) NOT VALID")
    async with QueueWorker(pg_engine, jobs, poll_interval=0.1, hooks=[hook]):
        await until(lambda: "its next occurrence was refused" in caplog.text)
        await until(lambda: hook.settled)
    assert "violates check constraint" in caplog.text
    assert "4111-secret" not in caplog.text


FORGED = "a\n2026-01-01 CRITICAL root: forged \x1b[31m\x9b2J\u202e"


@pytest.mark.parametrize("where", ["a job that ran", "a name that nobody runs", "a cron job that cannot be scheduled"])
async def test_s8_a_name_stays_on_its_line_of_the_log(engine, caplog, where):
    caplog.set_level(logging.INFO, "queue_kit")
    jobs = Handlers()
    jobs.add("queue_kit.queue.insights", job_queue_insights())
    match where:
        case "a job that ran":
            jobs.add(FORGED, nothing)
            await add_job(engine, FORGED)
            await QueueWorker(engine, jobs).drain()
        case "a name that nobody runs":
            await add_job(engine, FORGED)
            await add_job(engine, "queue_kit.queue.insights")
            await QueueWorker(engine, jobs).drain()
        case _:
            await register_cron_jobs(engine, [CronJob(FORGED, far())])
            await raw(engine, "DELETE FROM queue_kit_job")
            await raw(engine, "UPDATE queue_kit_cron SET timezone = 'Nowhere'")
            async with QueueWorker(engine, jobs, poll_interval=0.1):
                await until(lambda: "cannot be scheduled" in caplog.text)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("queue_kit")]
    assert any("forged" in line for line in told)
    assert [line for line in told if not line.isprintable()] == []
