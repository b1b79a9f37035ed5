"""How a statement is carried out: the way to the rows that it is about, which either planner must be led to, and when
its commit has to be on the disk.
"""

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, false, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from queue_kit._dialect.columns import BIGINT


class row_pointer(FunctionElement[Any]):  # noqa: N801
    """The physical address of a job's row: what `any_row` takes."""

    inherit_cache = True


@compiles(row_pointer, "postgresql")
def _(element: row_pointer, compiler: SQLCompiler, **kw: Any) -> str:
    return "queue_kit_job.ctid"


@compiles(row_pointer, "sqlite")
def _(element: row_pointer, compiler: SQLCompiler, **kw: Any) -> str:
    return "queue_kit_job.id"


class any_row(FunctionElement[bool]):  # noqa: N801
    """Whether the row is one that `picked` selects by its `row_pointer`.

    On PostgreSQL always a TID scan: with a join the planner may turn a claim into a sequential scan (20 ms for 1).
    """

    inherit_cache = True

    def __init__(self, picked: Select[Any]) -> None:
        super().__init__(picked.correlate(None).scalar_subquery())


@compiles(any_row, "postgresql")
def _(element: any_row, compiler: SQLCompiler, **kw: Any) -> str:
    return f"queue_kit_job.ctid = ANY (ARRAY{compiler.process(element.clauses, **kw)})"


@compiles(any_row, "sqlite")
def _(element: any_row, compiler: SQLCompiler, **kw: Any) -> str:
    return f"queue_kit_job.id IN {compiler.process(element.clauses, **kw)}"


def where_also(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """All of these conditions, of rows that are reached by others: no index is chosen for them, nor anything guessed of
    how many rows they leave."""
    return case((and_(*conditions), true()), else_=false())


def first_of(ordered: Any, count: ColumnElement[int]) -> Any:  # each a Select, of which 2.0 and 2.1 differ in type
    """The first rows of a query that walks an index for its order, however few or many PostgreSQL thinks there are.

    Where it knows the limit and expects no more rows than that, it reads and sorts them all; where it does not know the
    limit it reckons with a tenth, and of a long backlog that is dear as well. So the inner one hides what the outer one
    tells.
    """
    return select(ordered.limit(select(count).scalar_subquery()).subquery("first_of")).limit(count)


class sorted_by(FunctionElement[Any]):  # noqa: N801
    """A column to order by that SQLite must not walk for it: it would read the whole table for a few rows."""

    type = BIGINT
    inherit_cache = True


@compiles(sorted_by, "postgresql")
def _(element: sorted_by, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(sorted_by, "sqlite")
def _(element: sorted_by, compiler: SQLCompiler, **kw: Any) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"


class flushed_later(FunctionElement[bool]):  # noqa: N801
    """Always true; the commit of this statement does not wait for the disk (PostgreSQL).

    For what may be lost in a crash of the server without harm: a claim, which then never took place.
    """

    inherit_cache = True


@compiles(flushed_later, "postgresql")
def _(element: flushed_later, compiler: SQLCompiler, **kw: Any) -> str:
    return "(SELECT set_config('synchronous_commit', 'off', true)) = 'off'"


@compiles(flushed_later, "sqlite")
def _(element: flushed_later, compiler: SQLCompiler, **kw: Any) -> str:
    return "1"
