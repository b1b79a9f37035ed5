"""How commands print: tables and times for people, JSON for scripts. What others wrote into the database reaches no
terminal with its control characters.
"""

import dataclasses
import errno
import io
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click

from queue_kit.cli.inherited import Inherited
from queue_kit.job import printable

json_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "as_json", cls=Inherited, is_flag=True, help="Print JSON, for scripts."
)

MAX_CELL = 80


def print_json(value: Any) -> None:
    """Print a value as JSON: times in ISO 8601, an endless number of seconds as "Infinity"."""
    click.echo(json.dumps(plain(value), indent=2))


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat()
        case UUID():
            return str(value)
        case float() if not math.isfinite(value):
            return "Infinity" if value > 0 else "-Infinity" if value < 0 else "NaN"
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, most: int = MAX_CELL) -> None:
    """Print a table."""
    for line in table(headings, rows, most=most):
        click.echo(line)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, most: int = MAX_CELL) -> list[str]:
    """The lines of a table; numbers to the right. Cells of more than `most` characters are cut."""
    cells = [[_cell(each, most) for each in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[at]) for row in cells) for at in range(len(headings))]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    lines = [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [list(headings), *cells]
    ]
    return [click.style(lines[0], bold=True), *lines[1:]]


def _cell(value: object, most: int) -> str:
    if value is None:
        return "-"
    return cut(shown(value), most)


def cut(text: str, most: int) -> str:
    """The beginning of a text that is too long, with a mark."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-|[\d.,]+( \w+)?", text) is not None


def shown(value: object) -> str:
    """A value as one line of text that no terminal takes for a command."""
    return moment(value) if isinstance(value, datetime) else printable(str(value))


def moment(instant: datetime) -> str:
    """A time in UTC, to the second."""
    try:
        return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):
        return str(instant)


def duration(seconds: float | None) -> str:
    """A span of time, in the unit that suits it."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1_000:.0f} ms"


def amount(count: int, thing: str) -> str:
    """So many things."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


class Printing(click.Group):
    """A group of commands whose output may have nowhere to go, which is told in a line."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # noqa: D102 - click's, which prints its help here
        with _somewhere_to_print():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: D102 - click's
        with _somewhere_to_print():
            return super().invoke(ctx)


@contextmanager
def _somewhere_to_print() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            raise
        sys.stdout = io.StringIO()  # or Python tries once more at its exit, and complains
        raise click.ClickException(f"the output cannot be written: {error.strerror}") from None


def log_to_stderr() -> None:
    """Show the log, unless somebody has set it up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def read_stdin() -> str:
    """All of stdin, as text."""
    if sys.stdin is None:
        raise click.UsageError("stdin is closed, so nothing can be read from it")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"stdin has bytes that are no {error.encoding} text, at {error.start}") from None


def confirm(question: str, *, yes: bool) -> None:
    """Ask before many jobs are changed; without a terminal to ask on, `--yes` must have been given."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"{question} Say --yes: there is no terminal to ask on")
    click.confirm(question, abort=True, err=True)  # stdout may be a script's
