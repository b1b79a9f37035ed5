"""Many rows in one statement. A batch always travels as one JSON parameter, so that a statement's text does not change
with the size of the batch.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import JSON, ColumnElement, Float, Integer, column, literal_column, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import CTE
from sqlalchemy.types import TypeEngine

from queue_kit._dialect.columns import JSON_TYPE, UtcDateTime


class json_elements(FunctionElement[Any]):  # noqa: N801
    """The elements of a JSON array parameter, as rows with one column `value`."""

    inherit_cache = True


@compiles(json_elements, "postgresql")
def _(element: json_elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"jsonb_array_elements(CAST({compiler.process(element.clauses, **kw)} AS JSONB))"


@compiles(json_elements, "sqlite")
def _(element: json_elements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


class json_field(FunctionElement[Any]):  # noqa: N801
    """One field of a JSON object, or one element of a JSON array, as the SQL type given."""

    inherit_cache = True

    def __init__(self, value: ColumnElement[Any], key: str | int, type_: TypeEngine[Any]) -> None:
        super().__init__(value, literal_column(str(key) if isinstance(key, int) else f"'{key}'"))
        self.type = type_


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
    path = f"'$[{key}]'" if key.isdigit() else f"'$.' || {key}"
    field = f"json_extract({value}, {path})"
    if isinstance(element.type, JSON):
        # Alone, json_extract makes SQL of a value (1 of true, 0.3 of 0.30000000000000004); in a pair it stays as it is.
        pair = f"json_extract({value}, {path}, '$.none')"
        return f"CASE WHEN json_type({value}, {path}) IS NOT NULL THEN substr({pair}, 2, length({pair}) - 7) END"
    if isinstance(element.type, Float):
        return f"CASE {field} WHEN 'Infinity' THEN 9e999 ELSE {field} END"
    return field


def json_batch(parameter: ColumnElement[str], **fields: TypeEngine[Any]) -> CTE:
    """A JSON array of objects as a table with these columns."""
    return _table(parameter, fields, fields)


def json_rows(parameter: ColumnElement[str], **fields: TypeEngine[Any]) -> CTE:
    """A JSON array of arrays as a table with these columns, in this order. PostgreSQL reads it in half the time that
    objects of two fields take it (0.5 us a row less)."""
    return _table(parameter, range(len(fields)), fields)


def _table(parameter: ColumnElement[str], keys: Iterable[str | int], fields: Mapping[str, TypeEngine[Any]]) -> CTE:
    element = json_elements(parameter).table_valued(column("value", JSON_TYPE), name="element")
    columns = [
        json_field(element.c.value, key, type_).label(name)
        for key, (name, type_) in zip(keys, fields.items(), strict=True)
    ]
    return select(*columns).select_from(element).cte("batch")


class member_of(FunctionElement[bool]):  # noqa: N801
    """Whether a column's value is in a JSON array parameter."""

    # Not typed Boolean (nor is `any_row`): SQLAlchemy would append `= 1` on SQLite, which no index serves.
    inherit_cache = True


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
