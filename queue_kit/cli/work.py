"""`queue-kit work`: a worker as a process of its own."""

import asyncio
import importlib
import inspect
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click
from click.core import ParameterSource
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from queue_kit._transient import is_transient
from queue_kit.cli.database import database_option, engine_for, masked, words
from queue_kit.cli.output import log_to_stderr
from queue_kit.errors import QueueKitError
from queue_kit.handlers import Handlers
from queue_kit.worker import QueueWorker


@click.command()
@click.argument("target", metavar="MODULE:ATTR")
@database_option(required=False)
@click.option("--include", "included", multiple=True, metavar="NAME", help="Run this name only; may be repeated.")
@click.option("--exclude", "excluded", multiple=True, metavar="NAME", help="Do not run this name; may be repeated.")
@click.option("--parallel-count", type=click.IntRange(1), help="How many jobs run at once.  [default: 1]")
@click.option("--drain", is_flag=True, help="Run what is due, print how it ended, and leave.")
@click.option("--uvloop", is_flag=True, help="Run on uvloop, which must be installed.")
def work(
    target: str,
    url: URL | None,
    included: tuple[str, ...],
    excluded: tuple[str, ...],
    parallel_count: int | None,
    drain: bool,
    uvloop: bool,
) -> None:
    """Run a worker until SIGINT or SIGTERM, then stop it gracefully.

    MODULE:ATTR names a QueueWorker, or Handlers (then the database and the options below make a worker of them), or a
    function (async or not) that returns either; the current directory is searched first. Logs go to stderr unless the
    module has set up logging.

    \b
    Example:
      queue-kit work app.jobs:worker
      queue-kit work app.jobs:jobs --parallel-count 20 --exclude report.daily
      queue-kit work app.jobs:jobs --drain

    \b
    Exit status: 0 it stopped (with --drain: nothing is due any more), 1 it could not start or a handler refused to
    end, 2 wrong usage, 128 + N a second signal N made it leave at once.
    """
    found = _load(target)
    options: dict[str, Any] = {
        "included_names": included or None,
        "excluded_names": excluded or None,
        "parallel_count": parallel_count,
    }
    options = {name: value for name, value in options.items() if value is not None}
    # In the environment the URL may be for other commands, or for the module itself.
    typed = click.get_current_context().get_parameter_source("url") is ParameterSource.COMMANDLINE

    async def run() -> None:
        made = await _called(found, target) if callable(found) else found
        log_to_stderr()
        try:
            if isinstance(made, QueueWorker) and not options and not typed:
                await _work(made, drain=drain)
            elif isinstance(made, QueueWorker):
                raise click.UsageError(
                    "--database-url, --include, --exclude and --parallel-count are for Handlers, not for a QueueWorker"
                )
            elif not isinstance(made, Handlers):
                raise click.UsageError(f"{target} gives {_kind(made)}, not a QueueWorker or Handlers")
            elif url is None:
                raise click.UsageError(f"{target} gives Handlers, so say on which database: QUEUE_KIT_DATABASE_URL")
            else:
                await _work_on(url, made, options, drain=drain)
        except Exception as error:
            # SQLAlchemy 2.0 lets asyncpg's errors through as they are while it connects.
            if not isinstance(error, QueueKitError | SQLAlchemyError | OSError) and not is_transient(error):
                raise
            raise click.ClickException(words(error) if url is None else masked(words(error), url)) from error

    _run(run(), uvloop=uvloop)


async def _called(function: Callable[[], Any], target: str) -> Any:
    """What the user's function returns. What it raises is theirs, and its traceback says where."""
    if not _needs_nothing(function):
        raise click.UsageError(
            f"{target} gives {_kind(function)}, which cannot be called without arguments: it is no QueueWorker, no "
            "Handlers, and no function that returns either"
        )
    try:
        made = function()
        return await made if inspect.isawaitable(made) else made
    except Exception as error:
        error.add_note(f"queue-kit work: {target} was called, and raised this")
        raise


def _needs_nothing(function: Callable[[], Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # what is built in may have no signature: calling it tells
        pass
    return True


async def _work_on(url: URL, handlers: Handlers, options: dict[str, Any], *, drain: bool) -> None:
    engine = engine_for(url)
    try:
        await _work(QueueWorker(engine, handlers, **options), drain=drain)
    finally:
        await engine.dispose()


async def _work(worker: QueueWorker, *, drain: bool) -> None:
    if drain:
        counts = await worker.drain()
        click.echo(", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "nothing was due")
    else:
        await worker.run()


def _run(main: Coroutine[Any, Any, None], *, uvloop: bool) -> None:
    factory = None
    if uvloop:
        try:
            factory = importlib.import_module("uvloop").new_event_loop
        except ImportError:
            main.close()
            raise click.UsageError("--uvloop needs uvloop: pip install uvloop") from None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def _load(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise click.UsageError(f"{target!r} is not of the form MODULE:ATTR, like app.jobs:worker")
    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # an import inside the module, whose traceback says where
        raise click.UsageError(f"there is no module {error.name!r} here or among the installed ones") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise click.UsageError(f"{module_name} has no {attribute!r}")
        found = getattr(found, part)
    return found


def _kind(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
