"""The few places where PostgreSQL and SQLite differ, as SQL constructs that compile to either.

`_statements` is written once on top of these. A batch always travels as one JSON parameter, so that a statement's text
does not change with the size of the batch. All times come from the database: `statement_time` in conditions (stable,
so an index serves), `clock_time` wherever a time is stored.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    DateTime,
    Dialect,
    Float,
    Integer,
    Select,
    Text,
    cast,
    column,
    literal_column,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import CTE
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

LONG_AGO = datetime.min.replace(tzinfo=UTC)
BIGINT = BigInteger().with_variant(Integer(), "sqlite")

_SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"


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


class clock_time(FunctionElement[datetime]):  # noqa: N801 - named like the SQL functions it stands beside
    """The database's clock at this very moment, for a time that is stored."""

    type = UtcDateTime()
    inherit_cache = True


class statement_time(FunctionElement[datetime]):  # noqa: N801
    """The database's clock when the statement began, for conditions."""

    type = UtcDateTime()
    inherit_cache = True


class time_from_now(FunctionElement[datetime]):  # noqa: N801
    """`clock_time` plus a number of seconds."""

    type = UtcDateTime()
    inherit_cache = True


class never(FunctionElement[datetime]):  # noqa: N801
    """A time before all others: the lease of a row that nobody holds."""

    type = UtcDateTime()
    inherit_cache = True


class seconds_until(FunctionElement[float]):  # noqa: N801
    """Seconds from now to a time column; negative once it is past."""

    type = Float()
    inherit_cache = True


class json_elements(FunctionElement[Any]):  # noqa: N801
    """The elements of a JSON array parameter, as rows with one column `value`."""

    inherit_cache = True


class json_field(FunctionElement[Any]):  # noqa: N801
    """One field of a JSON object, as the SQL type given."""

    inherit_cache = True

    def __init__(self, value: ColumnElement[Any], key: str, type_: TypeEngine[Any]) -> None:
        super().__init__(value, literal_column(f"'{key}'"))
        self.type = type_


class member_of(FunctionElement[bool]):  # noqa: N801
    """Whether a column's value is in a JSON array parameter."""

    # Not typed Boolean (nor is `any_row`): SQLAlchemy would append `= 1` on SQLite, which no index serves.
    inherit_cache = True


class with_error(FunctionElement[Any]):  # noqa: N801
    """A JSON column of errors with one more at its end (none when it is NULL), of which the last ten are kept."""

    type = JSON_TYPE
    inherit_cache = True


class last_element(FunctionElement[Any]):  # noqa: N801
    """The last element of a JSON array; NULL of anything else."""

    type = NullType()
    inherit_cache = True


class beginning_of(FunctionElement[str]):  # noqa: N801
    """The first 500 characters of one field of a JSON object, as text; NULL where there is none."""

    type = Text()
    inherit_cache = True

    def __init__(self, value: ColumnElement[Any], key: str) -> None:
        super().__init__(value, literal_column(f"'{key}'"))


class sorted_by(FunctionElement[Any]):  # noqa: N801
    """A column to order by that SQLite must not walk for it: it would read the whole table for a few rows."""

    type = BIGINT
    inherit_cache = True


class json_text(FunctionElement[Any]):  # noqa: N801
    """A JSON column as it is stored: a driver that decodes it would fail the whole batch for one bad row."""

    type = NullType()
    inherit_cache = True


class text_size(FunctionElement[int]):  # noqa: N801
    """How many bytes a JSON column is as text."""

    type = BigInteger()
    inherit_cache = True


class flushed_later(FunctionElement[bool]):  # noqa: N801
    """Always true; the commit of this statement does not wait for the disk (PostgreSQL).

    For what may be lost in a crash of the server without harm: a claim, which then never took place.
    """

    inherit_cache = True


class time_text(FunctionElement[Any]):  # noqa: N801
    """A time column as ISO text: a driver that cannot read the year 10000 would fail the whole batch for one row."""

    type = NullType()
    inherit_cache = True


class row_pointer(FunctionElement[Any]):  # noqa: N801
    """The physical address of a job's row: what `any_row` takes."""

    inherit_cache = True


class any_row(FunctionElement[bool]):  # noqa: N801
    """Whether the row is one that `picked` selects by its `row_pointer`.

    On PostgreSQL always a TID scan: with a join the planner may turn a claim into a sequential scan (20 ms for 1).
    """

    inherit_cache = True

    def __init__(self, picked: Select[Any]) -> None:
        super().__init__(picked.correlate(None).scalar_subquery())


def json_batch(parameter: ColumnElement[str], **fields: TypeEngine[Any]) -> CTE:
    """A JSON array of objects as a table with these columns."""
    element = json_elements(parameter).table_valued(column("value", JSON_TYPE), name="element")
    columns = [json_field(element.c.value, key, type_).label(key) for key, type_ in fields.items()]
    return select(*columns).select_from(element).cte("batch")


@compiles(clock_time, "postgresql")
def _(element: clock_time, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(statement_time, "postgresql")
def _(element: statement_time, compiler: SQLCompiler, **kw: Any) -> str:
    return "statement_timestamp()"


@compiles(clock_time, "sqlite")
@compiles(statement_time, "sqlite")
def _(element: FunctionElement[datetime], compiler: SQLCompiler, **kw: Any) -> str:
    return _SQLITE_NOW


@compiles(time_from_now, "postgresql")
def _(element: time_from_now, compiler: SQLCompiler, **kw: Any) -> str:
    (seconds,) = element.clauses
    return f"clock_timestamp() + make_interval(secs => {compiler.process(cast(seconds, Float(53)), **kw)})"


@compiles(time_from_now, "sqlite")
def _(element: time_from_now, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {seconds}))"


@compiles(never, "postgresql")
def _(element: never, compiler: SQLCompiler, **kw: Any) -> str:
    return "'-infinity'::timestamp with time zone"


@compiles(never, "sqlite")
def _(element: never, compiler: SQLCompiler, **kw: Any) -> str:
    return "'0001-01-01 00:00:00.000000'"


@compiles(seconds_until, "postgresql")
def _(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    time = compiler.process(element.clauses, **kw)
    return f"CASE WHEN isfinite({time}) THEN CAST(extract(epoch FROM {time} - clock_timestamp()) AS FLOAT) END"


@compiles(seconds_until, "sqlite")
def _(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    return f"((julianday({compiler.process(element.clauses, **kw)}) - julianday('now')) * 86400.0)"


@compiles(json_elements, "postgresql")
def _(element: json_elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"jsonb_array_elements(CAST({compiler.process(element.clauses, **kw)} AS JSONB))"


@compiles(json_elements, "sqlite")
def _(element: json_elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(json_field, "postgresql")
def _(element: json_field, compiler: SQLCompiler, **kw: Any) -> str:
    value, key = (compiler.process(clause, **kw) for clause in element.clauses)
    if isinstance(element.type, JSON):
        return f"({value} -> {key})"
    if isinstance(element.type, UtcDateTime):
        return f"(CAST({value} ->> {key} AS TIMESTAMP) AT TIME ZONE 'UTC')"
    return f"CAST({value} ->> {key} AS {compiler.dialect.type_compiler_instance.process(element.type)})"


@compiles(json_field, "sqlite")
def _(element: json_field, compiler: SQLCompiler, **kw: Any) -> str:
    value, key = (compiler.process(clause, **kw) for clause in element.clauses)
    field = f"json_extract({value}, '$.' || {key})"
    if isinstance(element.type, JSON):
        # Alone, json_extract makes SQL of a value (1 of true, 0.3 of 0.30000000000000004); in a pair it stays as it is.
        pair = f"json_extract({value}, '$.' || {key}, '$.none')"
        return f"CASE WHEN json_type({value}, '$.' || {key}) IS NOT NULL THEN substr({pair}, 2, length({pair}) - 7) END"
    if isinstance(element.type, Float):
        return f"CASE {field} WHEN 'Infinity' THEN 9e999 ELSE {field} END"
    return field


@compiles(member_of, "postgresql")
def _(element: member_of, compiler: SQLCompiler, **kw: Any) -> str:
    subject, array = (compiler.process(clause, **kw) for clause in element.clauses)
    type_ = "BIGINT" if isinstance(next(iter(element.clauses)).type, Integer) else "TEXT"
    values = f"SELECT CAST(value AS {type_}) FROM jsonb_array_elements_text(CAST({array} AS JSONB)) AS value"
    return f"{subject} = ANY (ARRAY({values}))"


@compiles(member_of, "sqlite")
def _(element: member_of, compiler: SQLCompiler, **kw: Any) -> str:
    subject, array = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{subject} IN (SELECT value FROM json_each({array}))"


@compiles(with_error, "postgresql")
def _(element: with_error, compiler: SQLCompiler, **kw: Any) -> str:
    errors, error = (compiler.process(clause, **kw) for clause in element.clauses)
    kept = (
        f"CASE WHEN jsonb_typeof({errors}) IS DISTINCT FROM 'array' THEN CAST('[]' AS JSONB)"
        f" WHEN jsonb_array_length({errors}) >= 10 THEN {errors} - 0 ELSE {errors} END"
    )
    return f"CASE WHEN {error} IS NULL THEN {errors} ELSE ({kept}) || jsonb_build_array({error}) END"


@compiles(with_error, "sqlite")
def _(element: with_error, compiler: SQLCompiler, **kw: Any) -> str:
    errors, error = (compiler.process(clause, **kw) for clause in element.clauses)
    kept = (
        f"CASE WHEN json_valid({errors}) IS NOT 1 OR json_type({errors}) IS NOT 'array' THEN '[]'"
        f" WHEN json_array_length({errors}) >= 10 THEN json_remove({errors}, '$[0]') ELSE {errors} END"
    )
    return f"CASE WHEN {error} IS NULL THEN {errors} ELSE json_insert({kept}, '$[#]', json({error})) END"


@compiles(last_element, "postgresql")
def _(element: last_element, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)} -> -1)"


@compiles(last_element, "sqlite")
def _(element: last_element, compiler: SQLCompiler, **kw: Any) -> str:
    array = compiler.process(element.clauses, **kw)
    return f"CASE WHEN json_valid({array}) THEN json_quote(json_extract({array}, '$[#-1]')) END"


@compiles(beginning_of, "postgresql")
def _(element: beginning_of, compiler: SQLCompiler, **kw: Any) -> str:
    value, key = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"left({value} ->> {key}, 500)"


@compiles(beginning_of, "sqlite")
def _(element: beginning_of, compiler: SQLCompiler, **kw: Any) -> str:
    value, key = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"substr(CAST(json_extract({value}, '$.' || {key}) AS TEXT), 1, 500)"


@compiles(sorted_by, "postgresql")
def _(element: sorted_by, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(sorted_by, "sqlite")
def _(element: sorted_by, compiler: SQLCompiler, **kw: Any) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"


@compiles(json_text, "postgresql")
def _(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS TEXT)"


@compiles(json_text, "sqlite")
def _(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS BLOB)"


@compiles(text_size, "postgresql")
def _(element: text_size, compiler: SQLCompiler, **kw: Any) -> str:
    return f"octet_length(CAST({compiler.process(element.clauses, **kw)} AS TEXT))"


@compiles(text_size, "sqlite")
def _(element: text_size, compiler: SQLCompiler, **kw: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **kw)} AS BLOB))"


@compiles(flushed_later, "postgresql")
def _(element: flushed_later, compiler: SQLCompiler, **kw: Any) -> str:
    return "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'"


@compiles(flushed_later, "sqlite")
def _(element: flushed_later, compiler: SQLCompiler, **kw: Any) -> str:
    return "1"


@compiles(time_text, "postgresql")
def _(element: time_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(to_jsonb({compiler.process(element.clauses, **kw)}) #>> '{{}}')"


@compiles(time_text, "sqlite")
def _(element: time_text, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(row_pointer, "postgresql")
def _(element: row_pointer, compiler: SQLCompiler, **kw: Any) -> str:
    return "queue_kit_job.ctid"


@compiles(row_pointer, "sqlite")
def _(element: row_pointer, compiler: SQLCompiler, **kw: Any) -> str:
    return "queue_kit_job.id"


@compiles(any_row, "postgresql")
def _(element: any_row, compiler: SQLCompiler, **kw: Any) -> str:
    return f"queue_kit_job.ctid = ANY (ARRAY{compiler.process(element.clauses, **kw)})"


@compiles(any_row, "sqlite")
def _(element: any_row, compiler: SQLCompiler, **kw: Any) -> str:
    return f"queue_kit_job.id IN {compiler.process(element.clauses, **kw)}"
