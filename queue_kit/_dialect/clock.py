"""The database's clock: now, later, never, and how long until. All times come from the database: `statement_time` in
conditions (stable, so an index serves), `clock_time` wherever a time is stored.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Float, cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from queue_kit._dialect.columns import UtcDateTime

_SQLITE_NOW = "strftime('%Y-%m-%d %H:%M:%f', 'now')"


class clock_time(FunctionElement[datetime]):  # noqa: N801 - named like the SQL functions it stands beside
    """The database's clock at this very moment, for a time that is stored."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(clock_time, "postgresql")
def _(element: clock_time, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_timestamp()"


class statement_time(FunctionElement[datetime]):  # noqa: N801
    """The database's clock when the statement began, for conditions."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(statement_time, "postgresql")
def _(element: statement_time, compiler: SQLCompiler, **kw: Any) -> str:
    return "statement_timestamp()"


@compiles(clock_time, "sqlite")
@compiles(statement_time, "sqlite")
def _(element: FunctionElement[datetime], compiler: SQLCompiler, **kw: Any) -> str:
    return _SQLITE_NOW


class time_from_now(FunctionElement[datetime]):  # noqa: N801
    """`clock_time` plus a number of seconds."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(time_from_now, "postgresql")
def _(element: time_from_now, compiler: SQLCompiler, **kw: Any) -> str:
    (seconds,) = element.clauses
    return f"clock_timestamp() + make_interval(secs => {compiler.process(cast(seconds, Float(53)), **kw)})"


@compiles(time_from_now, "sqlite")
def _(element: time_from_now, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {seconds}))"


class never(FunctionElement[datetime]):  # noqa: N801
    """A time before all others: the lease of a row that nobody holds."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(never, "postgresql")
def _(element: never, compiler: SQLCompiler, **kw: Any) -> str:
    return "'-infinity'::timestamp with time zone"


@compiles(never, "sqlite")
def _(element: never, compiler: SQLCompiler, **kw: Any) -> str:
    return "'0001-01-01 00:00:00.000000'"


class seconds_until(FunctionElement[float]):  # noqa: N801
    """Seconds from now to a time column; negative once it is past."""

    type = Float()
    inherit_cache = True


@compiles(seconds_until, "postgresql")
def _(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    time = compiler.process(element.clauses, **kw)
    return f"CASE WHEN isfinite({time}) THEN CAST(extract(epoch FROM {time} - clock_timestamp()) AS FLOAT) END"


@compiles(seconds_until, "sqlite")
def _(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    return f"((julianday({compiler.process(element.clauses, **kw)}) - julianday('now')) * 86400.0)"


class time_text(FunctionElement[Any]):  # noqa: N801
    """A time column as ISO text: a driver that cannot read the year 10000 would fail the whole batch for one row."""

    type = NullType()
    inherit_cache = True


@compiles(time_text, "postgresql")
def _(element: time_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(to_jsonb({compiler.process(element.clauses, **kw)}) #>> '{{}}')"


@compiles(time_text, "sqlite")
def _(element: time_text, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)
