"""The database of a run: engines whose connections say which process they are of, the table of effects, and the
triggers that write the history of every lease. Only the torture test has them; the library knows nothing of either.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Executable,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    event,
    make_url,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from queue_kit import migrate, sqlite_engine
from queue_kit._dialect.clock import clock_time
from queue_kit._dialect.columns import UtcDateTime

METADATA = MetaData()
_SERIAL = BigInteger().with_variant(Integer(), "sqlite")

HISTORY = Table(
    "torture_history",
    METADATA,
    Column("seq", _SERIAL, primary_key=True),
    Column("job", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("worker", Uuid),
    Column("claim_no", Integer, nullable=False),
    Column("lease_until", UtcDateTime, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("fence", BigInteger),
    Column("at", UtcDateTime, nullable=False),
)

EFFECTS = Table(
    "torture_effect",
    METADATA,
    Column("seq", _SERIAL, primary_key=True),
    Column("job", BigInteger, nullable=False),
    Column("run", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("at", UtcDateTime, nullable=False, server_default=clock_time()),
)

_KIND = """CASE
    WHEN OLD.status > 1 AND NEW.status < 2 THEN 'reopen'
    WHEN NEW.claim_no <> OLD.claim_no THEN 'claim'
    WHEN NEW.status > 1 AND OLD.status < 2 THEN 'done'
    WHEN NEW.worker_id IS NULL AND OLD.worker_id IS NOT NULL THEN 'release'
    ELSE 'extend' END"""
_TOKEN = "CASE WHEN NEW.claim_no <> OLD.claim_no THEN NEW.worker_id ELSE OLD.worker_id END"
_CHANGED = """OLD.status > 1 AND NEW.status < 2 OR NEW.status > 1 OR NEW.claim_no <> OLD.claim_no
    OR NEW.lease_until <> OLD.lease_until OR (NEW.worker_id IS NULL) <> (OLD.worker_id IS NULL)"""

_POSTGRESQL = (
    f"""
    CREATE FUNCTION torture_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO torture_history (job, kind, worker, claim_no, lease_until, status, actor, fence, at)
        VALUES (OLD.id, {_KIND}, {_TOKEN}, NEW.claim_no, NEW.lease_until, NEW.status,
                current_setting('application_name'), txid_current(), clock_timestamp());
        RETURN NULL;
    END $$
    """,
    f"""
    CREATE TRIGGER torture_note AFTER UPDATE ON queue_kit_job FOR EACH ROW WHEN ({_CHANGED})
    EXECUTE FUNCTION torture_note()
    """,
    # A connection that died without a word must not keep its locks for hours; no handler works for so long.
    """
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET idle_in_transaction_session_timeout = 20000', current_database());
    END $$
    """,
)

_SQLITE = (
    f"""
    CREATE TRIGGER torture_note AFTER UPDATE ON queue_kit_job WHEN {_CHANGED} BEGIN
        INSERT INTO torture_history (job, kind, worker, claim_no, lease_until, status, actor, at)
        VALUES (OLD.id, {_KIND}, {_TOKEN}, NEW.claim_no, NEW.lease_until, NEW.status,
                torture_actor(), strftime('%Y-%m-%d %H:%M:%f', 'now'));
    END
    """,
)


def engine_for(url: str, actor: str) -> AsyncEngine:
    """An engine whose every connection is known to the triggers as this process's."""
    if not url.startswith("sqlite"):
        settings = {"server_settings": {"application_name": actor}, "ssl": False}
        return create_async_engine(url, connect_args=settings, pool_pre_ping=True)
    engine = sqlite_engine(str(make_url(url).database))

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: Any, _record: object) -> None:
        connection.create_function("torture_actor", 0, lambda: actor)

    return engine


async def install(engine: AsyncEngine) -> None:
    """Migrate an empty database and have it write its history."""
    await migrate.upgrade(engine)
    async with engine.begin() as connection:
        await connection.run_sync(METADATA.create_all)
        for statement in _SQLITE if engine.dialect.name == "sqlite" else _POSTGRESQL:
            await connection.exec_driver_sql(statement)


def add_effect(dialect: str) -> Executable:
    """Note an effect, with what tells the transaction in which its fence must be. Parameters: `job, run, kind, actor`.

    On SQLite that is the number of the next line of history: nobody else writes before this transaction ends.
    """
    fence = "(SELECT coalesce(max(seq), 0) + 1 FROM torture_history)" if dialect == "sqlite" else "txid_current()"
    values = f"(:job, :run, :kind, :actor, {fence})"
    return text(f"INSERT INTO torture_effect (job, run, kind, actor, fence) VALUES {values}")
