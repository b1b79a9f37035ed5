"""What calls say of a database that nobody has migrated: the mend, and not a word of SQL. What is missing of the
application's own tables stays the driver's word."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from queue_kit import (
    CronJob,
    Handlers,
    Job,
    NewJob,
    SchemaMismatch,
    add_job,
    add_jobs,
    cancel_job,
    cancel_jobs,
    failure_groups,
    get_job,
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
    run_job_now,
    throughput,
    throughput_by_name,
)
from queue_kit.contrib.files import get_file
from queue_kit.dashboard import Access, dashboard
from tests.database.clock import WAYS, reach
from tests.database.session_stores import Cart, cart_store

jobs = Handlers()


@jobs.handler("mail")
async def mail(event: Any, session: Any, job: Job[dict]) -> None: ...


CALLS = {
    "add_job": (lambda db: add_job(db, "mail"), "job"),
    "add_jobs": (lambda db: add_jobs(db, [NewJob("mail", unique_key="a")]), "job"),
    "handler.add": (lambda db: mail.add(db, {}), "job"),
    "get_job": (lambda db: get_job(db, 1), "job"),
    "list_jobs": (list_jobs, "job"),
    "queue_insights": (queue_insights, "job"),
    "failure_groups": (failure_groups, "job"),
    "cancel_job": (lambda db: cancel_job(db, 1), "job"),
    "cancel_jobs": (lambda db: cancel_jobs(db, name="mail"), "job"),
    "retry_job": (lambda db: retry_job(db, 1), "job"),
    "retry_jobs": (lambda db: retry_jobs(db, name="mail"), "job"),
    "run_job_now": (lambda db: run_job_now(db, 1), "job"),
    "register_cron_jobs": (lambda db: register_cron_jobs(db, [CronJob("mail", "0 6 * * *")]), "cron"),
    "list_cron_jobs": (list_cron_jobs, "cron"),
    "pause_cron_job": (lambda db: pause_cron_job(db, "mail"), "cron"),
    "resume_cron_job": (lambda db: resume_cron_job(db, "mail"), "cron"),
    "run_cron_job": (lambda db: run_cron_job(db, "mail"), "cron"),
    "list_workers": (list_workers, "worker"),
    "throughput": (throughput, "history"),
    "throughput_by_name": (throughput_by_name, "history"),
}


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A table of the application's, with a column that is called like a table of ours."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column("queue_kit_job")


@pytest.mark.parametrize("way", WAYS)
async def test_without_tables_every_call_says_what_to_do(empty_engine, way):
    for call, (ask, table) in CALLS.items():
        with pytest.raises(SchemaMismatch) as caught:
            async with reach(empty_engine, way) as db:
                await ask(db)
        said = str(caught.value)
        missing = f"the table queue_kit_{table} is missing, or of another version: run `queue-kit"
        assert said.startswith(missing), call
        assert f"upgrade_in_revision(op, to={migrate.VERSION})" in said
        assert "SELECT" not in said
        assert (caught.value.found, caught.value.needed) == (None, migrate.VERSION)
        assert isinstance(caught.value.__cause__, DBAPIError)


@pytest.mark.parametrize(
    ("table", "column", "call"),
    [("job", "cron_tick", "list_jobs"), ("cron", "paused", "register_cron_jobs"), ("history", "retried", "throughput")],
)
async def test_a_missing_column_is_told_in_the_same_way(engine, table, column, call):
    async with engine.begin() as connection:
        await connection.execute(text(f"ALTER TABLE queue_kit_{table} RENAME COLUMN {column} TO other"))
    with pytest.raises(SchemaMismatch, match=f"the table queue_kit_{table} is missing, or of another version"):
        await CALLS[call][0](engine)


@pytest.mark.parametrize("way", WAYS)
async def test_the_tables_of_an_extra_are_brought_by_its_name(engine, way):
    store = cart_store()
    await migrate.upgrade(engine, ["sessions"])
    pair = await store.create(engine, Cart())
    await migrate.downgrade(engine, extra="sessions")
    calls = {
        "sessions": [
            lambda db: store.create(db, Cart()),
            lambda db: store.get(db, pair.access_token),
            lambda db: store.refresh_tokens(db, pair.refresh_token),
        ],
        "files": [lambda db: get_file(db, uuid4())],
    }
    for extra, asks in calls.items():
        for ask in asks:
            with pytest.raises(SchemaMismatch, match=f"run `queue-kit migrate --with {extra}`") as caught:
                async with engine.connect() as connection, AsyncSession(engine) as session:
                    await ask({"engine": engine, "connection": connection, "session": session}[way])
            assert caught.value.needed == 1


async def ask_and_flush(ask, session):
    """Before some statements SQLAlchemy 2.0 does not flush by itself."""
    await ask(session, 1)
    await session.flush()


async def test_a_flush_of_the_callers_own_objects_speaks_for_itself(engine):
    for table in (None, Table("orders", MetaData(), Column("id", Integer, primary_key=True))):
        if table is not None:
            async with engine.begin() as connection:
                await connection.run_sync(table.create)
        for ask in (get_job, cancel_job):
            async with AsyncSession(engine) as session:
                session.add(Order(id=1, job_id=await add_job(session, "mail")))
                with pytest.raises(DBAPIError, match="orders"):
                    await ask_and_flush(ask, session)


async def test_a_trigger_of_the_callers_on_a_table_of_ours_speaks_for_itself(engine):
    async with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            made = ["CREATE TRIGGER noted AFTER INSERT ON queue_kit_job BEGIN INSERT INTO notes VALUES (1); END"]
        else:
            made = [
                "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO notes VALUES (1); END$$",
                "CREATE TRIGGER noted AFTER INSERT ON queue_kit_job EXECUTE FUNCTION f()",
            ]
        for statement in made:
            await connection.execute(text(statement))
    with pytest.raises(DBAPIError, match="notes"):
        await add_job(engine, "mail")


async def test_the_dashboard_has_a_page_and_a_line_for_it(empty_engine, caplog):
    app = dashboard(empty_engine, authorize=lambda _: Access("ada"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as ada:
        answer = await ada.get("/jobs")
    assert (answer.status_code, "has no queue that may be read" in answer.text) == (503, True)
    assert "the database did not serve the dashboard: SchemaMismatch: the table queue_kit_job is missing" in caplog.text
