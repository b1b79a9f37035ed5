"""The values that both databases keep in their own way, times and JSON, as column types; and times as the text that
SQLite stores and a JSON batch carries.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, Text
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator, TypeEngine

LONG_AGO = datetime.min.replace(tzinfo=UTC)
BIGINT = BigInteger().with_variant(Integer(), "sqlite")


class JsonText(sqlite.JSON):
    """JSON in a TEXT column: SQLite takes the values of a column of type JSON for numbers where it can, and rounds."""


@compiles(JsonText, "sqlite")
def _(element: JsonText, compiler: object, **kw: Any) -> str:
    return "TEXT"


JSON_TYPE = (
    JSON(none_as_null=True)
    .with_variant(JSONB(none_as_null=True), "postgresql")
    .with_variant(JsonText(none_as_null=True), "sqlite")
)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes on both databases: `timestamptz`, or UTC text that sorts as time. `-infinity` is `LONG_AGO`."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name != "sqlite":
            return value
        return as_utc_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else as_instant(value)


def as_utc_text(instant: datetime) -> str:
    """The form in which times are stored in SQLite and sent inside a JSON batch. Whole milliseconds look as SQLite's
    own clock writes them, or one and the same time would sort before itself."""
    timespec = "microseconds" if instant.microsecond % 1000 else "milliseconds"
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec=timespec)


def as_instant(value: datetime | str) -> datetime:
    """What either driver returns for a time column, as an aware datetime. Raises `ValueError` for anything else."""
    if value == "-infinity":
        return LONG_AGO
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    # asyncpg returns both infinities as naive datetimes, everything else as aware ones.
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def nearest_instant(value: str) -> datetime:
    """What `time_text` returns, as an aware datetime: the last that there is for one that Python cannot hold, as of the
    year 10000, and `LONG_AGO` for one before Christ."""
    try:
        return as_instant(value)
    except ValueError:
        return LONG_AGO if value.endswith("BC") else datetime.max.replace(tzinfo=UTC)
