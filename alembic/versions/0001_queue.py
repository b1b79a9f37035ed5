"""The queue: jobs, cron definitions, workers, and the version of this schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from queue_kit.errors import ConfigurationError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INSTANT = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")
_JSON = sa.JSON().with_variant(JSONB(), "postgresql").with_variant(sa.Text(), "sqlite")
_NAME = sa.Text(collation="C").with_variant(sa.Text(), "sqlite")

_SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"

# A new or re-timed job is placed by the database, so that ORM, Core and plain SQL inserts all land right.
_POSTGRESQL = (
    """
    CREATE OR REPLACE FUNCTION queue_kit_job_place() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.status := 0; RETURN NEW; END $$
    """,
    """
    CREATE TRIGGER queue_kit_job_place BEFORE INSERT OR UPDATE OF scheduled_at ON queue_kit_job
    FOR EACH ROW WHEN (NEW.status = 1 AND NEW.scheduled_at > clock_timestamp())
    EXECUTE FUNCTION queue_kit_job_place()
    """,
    # Only for a worker that says that it sleeps: NOTIFY holds a global lock through the commit. Schemas are written
    # out, since a search_path of the function's own costs an insert as much again as the look.
    """
    DO $do$ BEGIN EXECUTE format($function$
        CREATE OR REPLACE FUNCTION queue_kit_job_notify() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN
            IF EXISTS (
                SELECT FROM %I.queue_kit_worker WHERE idle_until OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()
            ) THEN
                PERFORM pg_catalog.pg_notify('queue_kit_job', '');
            END IF;
            RETURN NULL;
        END $$
    $function$, current_schema()); END $do$
    """,
    """
    CREATE TRIGGER queue_kit_job_notify AFTER INSERT ON queue_kit_job
    FOR EACH STATEMENT EXECUTE FUNCTION queue_kit_job_notify()
    """,
    # Half-filled pages keep a claim and a settle HOT. The table turns over wholly many times an hour, so vacuum by
    # count, not by share, and without pauses.
    """
    ALTER TABLE queue_kit_job SET (
        fillfactor = 50,
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000,
        autovacuum_vacuum_cost_delay = 0
    )
    """,
)
_SQLITE = tuple(
    f"""
    CREATE TRIGGER queue_kit_job_place_{when} AFTER {event} ON queue_kit_job
    WHEN NEW.status = 1 AND NEW.scheduled_at > {_SQLITE_NOW}
    BEGIN UPDATE queue_kit_job SET status = 0 WHERE id = NEW.id; END
    """
    for when, event in (("insert", "INSERT"), ("update", "UPDATE OF scheduled_at"))
)


def upgrade() -> None:
    """Create the tables, and on PostgreSQL the triggers that place jobs and wake workers."""
    postgresql = op.get_context().dialect.name == "postgresql"
    now = sa.text("clock_timestamp()" if postgresql else f"({_SQLITE_NOW})")
    never = sa.text("'-infinity'::timestamp with time zone" if postgresql else "'0001-01-01 00:00:00.000000'")
    op.create_table(
        "queue_kit_job",
        sa.Column("id", _ID, sa.Identity(always=False), nullable=False),
        sa.Column("scheduled_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("lease_until", _INSTANT, server_default=never, nullable=False),
        sa.Column("created_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("updated_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("cron_tick", _INSTANT),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("claim_no", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("retry_count", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lost", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_retry_count", sa.Integer()),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("5"), nullable=False),
        sa.Column("status", sa.SmallInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("handler_timeout", sa.Float(53)),
        sa.Column("name", _NAME, nullable=False),
        sa.Column("unique_key", _NAME),
        sa.Column("cron_name", _NAME),
        sa.Column("data", _JSON, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("errors", _JSON),
        sa.Column("trace_context", _JSON),
        sa.CheckConstraint("priority >= 0", name="queue_kit_job_priority"),
        sa.CheckConstraint("status BETWEEN 0 AND 4", name="queue_kit_job_status"),
        sa.CheckConstraint("handler_timeout >= 0 AND handler_timeout <> 'NaN'", name="queue_kit_job_handler_timeout"),
        sa.CheckConstraint("name <> ''", name="queue_kit_job_name"),
        sa.PrimaryKeyConstraint("id", name="queue_kit_job_pkey"),
        sqlite_autoincrement=True,
    )
    _create_index("queue_kit_job_ready", ["priority", "scheduled_at", "id"], "status = 1")
    _create_index("queue_kit_job_scheduled", ["scheduled_at"], "status = 0")
    _create_index("queue_kit_job_failed", ["updated_at"], "status = 3")
    _create_index("queue_kit_job_unique_key", ["unique_key"], "status < 2 AND unique_key IS NOT NULL", unique=True)
    _create_index("queue_kit_job_cron_live", ["cron_name"], "status < 2 AND cron_name IS NOT NULL", unique=True)
    op.create_table(
        "queue_kit_cron",
        sa.Column("name", _NAME, nullable=False),
        sa.Column("expression", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("data", _JSON, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("handler_timeout", sa.Float(53)),
        sa.Column("next_at", _INSTANT, nullable=False),
        sa.Column("last_completed_at", _INSTANT),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("name", name="queue_kit_cron_pkey"),
    )
    op.create_table(
        "queue_kit_worker",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("names", _JSON, nullable=False),
        sa.Column("started_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("seen_at", _INSTANT, server_default=now, nullable=False),
        sa.Column("idle_until", _INSTANT),
        sa.Column("running", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="queue_kit_worker_pkey"),
    )
    op.create_table(
        "queue_kit_schema",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("compatible_from", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("version", name="queue_kit_schema_pkey"),
    )
    for statement in _POSTGRESQL if postgresql else _SQLITE:
        op.execute(statement)
    op.execute("INSERT INTO queue_kit_schema (version, compatible_from) VALUES (1, 1)")


def _create_index(name: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, "queue_kit_job", columns, unique=unique, postgresql_where=condition, sqlite_where=condition)


def downgrade() -> None:
    """Drop everything, finished jobs included; refuse while there are others."""
    _refuse_to_lose_jobs()
    for table in ("queue_kit_schema", "queue_kit_worker", "queue_kit_cron", "queue_kit_job"):
        op.drop_table(table)
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION queue_kit_job_place()")
        op.execute("DROP FUNCTION queue_kit_job_notify()")


def _refuse_to_lose_jobs() -> None:
    if op.get_context().as_sql:
        return
    if op.get_context().dialect.name == "postgresql":
        op.execute("LOCK TABLE queue_kit_job")  # or one could be added between the look and the drop
    # Cron's are stored again by the next registration.
    live = (
        op.get_bind()
        .execute(sa.text("SELECT count(*) FROM queue_kit_job WHERE status < 2 AND cron_name IS NULL"))
        .scalar_one()
    )
    if live:
        raise ConfigurationError(
            f"{live} job(s) are not complete and would be lost: let workers finish them, or delete them "
            "(DELETE FROM queue_kit_job WHERE status < 2), and run it again"
        )
