"""JSON columns, written and read without a driver that decodes them: one bad row would fail the whole batch."""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Text, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from queue_kit._dialect.columns import JSON_TYPE


class with_error(FunctionElement[Any]):  # noqa: N801
    """A JSON column of errors with one more at its end (none when it is NULL), of which the last ten are kept."""

    type = JSON_TYPE
    inherit_cache = True


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


class last_element(FunctionElement[Any]):  # noqa: N801
    """The last element of a JSON array; NULL of anything else."""

    type = NullType()
    inherit_cache = True


@compiles(last_element, "postgresql")
def _(element: last_element, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)} -> -1)"


@compiles(last_element, "sqlite")
def _(element: last_element, compiler: SQLCompiler, **kw: Any) -> str:
    array = compiler.process(element.clauses, **kw)
    return f"CASE WHEN json_valid({array}) THEN json_quote(json_extract({array}, '$[#-1]')) END"


class beginning_of(FunctionElement[str]):  # noqa: N801
    """The first 500 characters of one field of a JSON object, as text; NULL where there is none."""

    type = Text()
    inherit_cache = True

    def __init__(self, value: ColumnElement[Any], key: str) -> None:
        super().__init__(value, literal_column(f"'{key}'"))


@compiles(beginning_of, "postgresql")
def _(element: beginning_of, compiler: SQLCompiler, **kw: Any) -> str:
    value, key = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"left({value} ->> {key}, 500)"


@compiles(beginning_of, "sqlite")
def _(element: beginning_of, compiler: SQLCompiler, **kw: Any) -> str:
    value, key = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"substr(CAST(json_extract({value}, '$.' || {key}) AS TEXT), 1, 500)"


class json_text(FunctionElement[Any]):  # noqa: N801
    """A JSON column as it is stored: a driver that decodes it would fail the whole batch for one bad row."""

    type = NullType()
    inherit_cache = True


@compiles(json_text, "postgresql")
def _(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS TEXT)"


@compiles(json_text, "sqlite")
def _(element: json_text, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS BLOB)"


class text_size(FunctionElement[int]):  # noqa: N801
    """How many bytes a JSON column is as text."""

    type = BigInteger()
    inherit_cache = True


@compiles(text_size, "postgresql")
def _(element: text_size, compiler: SQLCompiler, **kw: Any) -> str:
    return f"octet_length(CAST({compiler.process(element.clauses, **kw)} AS TEXT))"


@compiles(text_size, "sqlite")
def _(element: text_size, compiler: SQLCompiler, **kw: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **kw)} AS BLOB))"
