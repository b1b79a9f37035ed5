"""The tables, as mapped classes on a metadata of their own. Alembic owns the schema (`queue_kit.migrate`); these only
describe it. `session.add(JobRow(name="email.send", data={...}))` is a complete enqueue.
"""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    ColumnElement,
    Float,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Text,
    Uuid,
    and_,
    case,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, validates

from queue_kit import job
from queue_kit._dialect.clock import clock_time, never, statement_time
from queue_kit._dialect.columns import BIGINT, JSON_TYPE, UtcDateTime
from queue_kit.job import JobState

SCHEDULED, READY, COMPLETED, FAILED, CANCELLED = range(5)
_STATES = {
    SCHEDULED: JobState.scheduled,
    READY: JobState.ready,
    COMPLETED: JobState.completed,
    FAILED: JobState.failed,
    CANCELLED: JobState.cancelled,
}
_C_TEXT = Text(collation="C").with_variant(Text(), "sqlite")


def _where(condition: str) -> dict[str, Any]:
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


class Base(DeclarativeBase):
    """The base of queue_kit's own tables."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={"ck": "%(table_name)s_%(constraint_name)s", "pk": "%(table_name)s_pkey"},
    )


class JobRow(Base):
    """A job. Checked like `NewJob` when its attributes are set; the database places it (`scheduled` or `ready`)."""

    __tablename__ = "queue_kit_job"
    __mapper_args__: Any = {"eager_defaults": True}  # noqa: RUF012 - SQLAlchemy's

    id: Mapped[int] = mapped_column(BIGINT, Identity(always=False), primary_key=True)
    scheduled_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    lease_until: Mapped[datetime] = mapped_column(UtcDateTime, server_default=never())
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    cron_tick: Mapped[datetime | None] = mapped_column(UtcDateTime)
    worker_id: Mapped[UUID | None] = mapped_column(Uuid)
    claim_no: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    retry_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    lost: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    max_retry_count: Mapped[int | None] = mapped_column(Integer)
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("5"))
    status: Mapped[int] = mapped_column(SmallInteger, server_default=text("1"))
    cancel_requested: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    handler_timeout: Mapped[float | None] = mapped_column(Float(53))
    name: Mapped[str] = mapped_column(_C_TEXT)
    unique_key: Mapped[str | None] = mapped_column(_C_TEXT)
    cron_name: Mapped[str | None] = mapped_column(_C_TEXT)
    data: Mapped[Any] = mapped_column(JSON_TYPE, server_default=text("'{}'"))
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON_TYPE)
    trace_context: Mapped[dict[str, Any] | None] = mapped_column(JSON_TYPE)

    __table_args__: Any = (
        Index("queue_kit_job_ready", "priority", "scheduled_at", "id", **_where("status = 1")),
        Index("queue_kit_job_scheduled", "scheduled_at", **_where("status = 0")),
        Index("queue_kit_job_failed", "updated_at", **_where("status = 3")),
        Index("queue_kit_job_unique_key", "unique_key", unique=True, **_where("status < 2 AND unique_key IS NOT NULL")),
        Index("queue_kit_job_cron_live", "cron_name", unique=True, **_where("status < 2 AND cron_name IS NOT NULL")),
        Index("queue_kit_job_key", "unique_key", "id", **_where("unique_key IS NOT NULL")),
        Index("queue_kit_job_cron", "cron_name", "id", **_where("cron_name IS NOT NULL")),
        Index("queue_kit_job_failed_name", "name", "id", **_where("status = 3")),
        Index("queue_kit_job_cancelled", "id", **_where("status = 4")),
        CheckConstraint("priority >= 0", name="priority"),
        CheckConstraint("status BETWEEN 0 AND 4", name="status"),
        CheckConstraint("handler_timeout >= 0 AND handler_timeout <> 'NaN'", name="handler_timeout"),
        CheckConstraint("name <> ''", name="name"),
        {"sqlite_autoincrement": True},  # an id is an idempotency key, so none is ever given twice
    )

    @validates("name")
    def _validate_name(self, _key: str, value: object) -> str:
        return job.check_name(value)

    @validates("priority")
    def _validate_priority(self, _key: str, value: object) -> int:
        return job.check_priority(value)

    @validates("scheduled_at")
    def _validate_scheduled_at(self, _key: str, value: object) -> datetime | None:
        return job.check_scheduled_at(value)

    @validates("handler_timeout")
    def _validate_handler_timeout(self, _key: str, value: object) -> float | None:
        return job.check_timeout(value)

    @validates("max_retry_count")
    def _validate_max_retry_count(self, _key: str, value: object) -> int | None:
        return job.check_max_retry_count(value)

    @validates("unique_key")
    def _validate_unique_key(self, _key: str, value: object) -> str | None:
        return job.check_unique_key(value)

    @validates("data")
    def _validate_data(self, _key: str, value: object) -> object:
        return job.check_payload({} if value is None else value)

    @hybrid_property
    def state(self) -> JobState:
        """Where the job stands. In SQL by the database's clock; on an instance by this process's, for display."""
        if self.status == READY and self.lease_until > datetime.now(self.lease_until.tzinfo):
            return JobState.running
        return _STATES[self.status]

    @state.inplace.expression
    @classmethod
    def _state_expression(cls) -> ColumnElement[JobState]:
        names = {status: state.value for status, state in _STATES.items()}
        running = and_(cls.status == READY, cls.lease_until >= statement_time())
        return case((running, JobState.running.value), else_=case(names, value=cls.status))

    @hybrid_property
    def is_complete(self) -> bool:
        """Whether the job is completed, failed or cancelled."""
        return self.status > READY


class CronRow(Base):
    """A cron definition: the truth about a recurring job. Its occurrences are ordinary jobs with `cron_name`."""

    __tablename__ = "queue_kit_cron"

    name: Mapped[str] = mapped_column(_C_TEXT, primary_key=True)
    expression: Mapped[str] = mapped_column(Text)
    timezone: Mapped[str] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(SmallInteger)
    data: Mapped[Any] = mapped_column(JSON_TYPE, server_default=text("'{}'"))
    handler_timeout: Mapped[float | None] = mapped_column(Float(53))
    next_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    paused: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))


class WorkerRow(Base):
    """A worker that was alive at `seen_at`. It only informs: deleting all of these rows harms no job."""

    __tablename__ = "queue_kit_worker"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    label: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Integer)
    names: Mapped[list[str]] = mapped_column(JSON_TYPE)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=clock_time())
    idle_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    running: Mapped[int] = mapped_column(Integer, server_default=text("0"))


class HistoryRow(Base):
    """What the runs of one job name came to in one minute: how many ended in which way, and their times in seconds.

    Workers add to it. It only informs: deleting all of these rows harms no job.
    """

    __tablename__ = "queue_kit_history"

    minute: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    name: Mapped[str] = mapped_column(_C_TEXT, primary_key=True)
    completed: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    retried: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    failed: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    snoozed: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    cancelled: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    released: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    lost: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    run_seconds: Mapped[float] = mapped_column(Float(53), server_default=text("0"))
    longest_run: Mapped[float] = mapped_column(Float(53), server_default=text("0"))
    wait_seconds: Mapped[float] = mapped_column(Float(53), server_default=text("0"))
    longest_wait: Mapped[float] = mapped_column(Float(53), server_default=text("0"))


class SchemaRow(Base):
    """The version of these tables, and the oldest library version (as a schema number) that can still use them."""

    __tablename__ = "queue_kit_schema"

    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    compatible_from: Mapped[int] = mapped_column(Integer)


JOBS, CRON_ENTRIES, WORKERS, HISTORY = (
    Base.metadata.tables[each.__tablename__] for each in (JobRow, CronRow, WorkerRow, HistoryRow)
)
