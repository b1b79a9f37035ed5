"""`queue-kit retry` and `cancel`: by ids, or by what the jobs have in common."""

from collections.abc import Awaitable, Callable
from typing import Any

import click
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit.bulk import MAX_JOBS, BulkChange, cancel_jobs, retry_jobs
from queue_kit.cli.database import ANSWER, answering, database_option, on_database
from queue_kit.cli.output import amount, confirm, json_option, print_json, shown
from queue_kit.errors import JobConflict, JobNotFound
from queue_kit.failures import NEWEST
from queue_kit.job import JobState
from queue_kit.operate import cancel_job, retry_job

_limit = click.option(
    "--limit", type=click.IntRange(1, MAX_JOBS), default=MAX_JOBS, show_default=True, help="How many at most."
)
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@click.argument("ids", metavar="[ID]...", type=int, nargs=-1)
@database_option()
@click.option("--state", type=click.Choice(["failed", "cancelled"]), help="All in this state.")
@click.option("--name", help="Failed ones of this name.")
@click.option("--error-class", metavar="CLASS", help="Failed ones whose last error is of this class.")
@click.option("--message", help="Failed ones with this message, as `queue-kit failures` shows it.")
@_limit
@_yes
@json_option
def retry(
    ids: tuple[int, ...],
    url: URL,
    state: str | None,
    name: str | None,
    error_class: str | None,
    message: str | None,
    limit: int,
    yes: bool,
    as_json: bool,
) -> None:
    """Queue failed or cancelled jobs again: due now, with all their tries.

    By ids, at once; or by a filter, after a count and a question. Jobs in conflict are skipped: those in another state,
    and those whose unique key a live job holds. A filter looks at the 2,000 jobs that failed last, with --name at the
    2,000 newest failed ones of that name, and says when there are older ones.

    \b
    Example:
      queue-kit retry 1234 1240
      queue-kit retry --name email.send --error-class ConnectionRefusedError
      queue-kit retry --state failed --yes

    \b
    With --json: {"changed": 3, "asked": 0, "skipped": 1, "more": false, "older": false}
    Exit status: 0, or 1 when ids were given and one of them could not be retried.
    """
    filters = {"state": _state(state), "name": name, "error_class": error_class, "message": message}
    _change(url, ids, filters, retry_job, retry_jobs, "retry", limit=limit, yes=yes, as_json=as_json)


@click.command()
@click.argument("ids", metavar="[ID]...", type=int, nargs=-1)
@database_option()
@click.option("--state", type=click.Choice(["scheduled", "ready", "running"]), help="All in this state.")
@click.option("--name", help="All of this name that are not complete.")
@_limit
@_yes
@json_option
def cancel(
    ids: tuple[int, ...], url: URL, state: str | None, name: str | None, limit: int, yes: bool, as_json: bool
) -> None:
    """Cancel jobs: those that wait at once; those that run are asked to end.

    By ids, at once; or by a filter, after a count and a question.

    \b
    Example:
      queue-kit cancel 1234
      queue-kit cancel --name email.send --state scheduled

    \b
    With --json: {"changed": 3, "asked": 1, "skipped": 0, "more": false, "older": false}; those asked count as changed.
    Exit status: 0, or 1 when ids were given and one of them could not be cancelled.
    """

    async def one(engine: AsyncEngine, job_id: int) -> bool:
        answer = await cancel_job(engine, job_id)
        if answer not in (JobState.cancelled, JobState.running):
            raise JobConflict(job_id, f"is {answer} already")
        return answer is JobState.running

    filters = {"state": _state(state), "name": name}
    _change(url, ids, filters, one, cancel_jobs, "cancel", limit=limit, yes=yes, as_json=as_json)


def _state(state: str | None) -> JobState | None:
    return None if state is None else JobState(state)


def _change(
    url: URL,
    ids: tuple[int, ...],
    filters: dict[str, Any],
    one: Callable[[AsyncEngine, int], Awaitable[bool | None]],
    many: Callable[..., Awaitable[BulkChange]],
    verb: str,
    *,
    limit: int,
    yes: bool,
    as_json: bool,
) -> None:
    given = {key: value for key, value in filters.items() if value is not None}
    if bool(ids) == bool(given):
        options = ", ".join(f"--{key.replace('_', '-')}" for key in filters)
        raise click.UsageError(f"give either ids or a filter ({options})")
    if ids:
        change = on_database(url, lambda engine: _each(engine, ids, one))
    else:
        fit = on_database(url, lambda engine: many(engine, **given, limit=limit, dry_run=True), within=ANSWER)
        chosen = ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in given.items())
        if fit.changed:
            more = f" (more than {limit:,} fit; these first)" if fit.more else ""
            confirm(f"{verb} {amount(fit.changed, 'job')} of {chosen}{more}?", yes=yes)
        else:
            click.echo(f"no job fits {chosen}", err=True)
        change = fit
        if fit.changed:
            change = on_database(url, lambda engine: many(engine, **given, limit=limit), within=ANSWER)
    if as_json:
        print_json(change)
    else:
        click.echo(_told(change, "retried" if verb == "retry" else "cancelled"))
    if ids and change.skipped:
        raise SystemExit(1)


async def _each(
    engine: AsyncEngine, ids: tuple[int, ...], one: Callable[[AsyncEngine, int], Awaitable[bool | None]]
) -> BulkChange:
    changed = asked = 0
    for job_id in ids:
        try:
            async with answering(ANSWER):
                asked += bool(await one(engine, job_id))
            changed += 1
        except (JobNotFound, JobConflict) as error:
            click.echo(str(error), err=True)
    return BulkChange(changed, asked, len(ids) - changed)


def _told(change: BulkChange, done: str) -> str:
    words = f"{amount(change.changed - change.asked, 'job')} {done}"
    if change.asked:
        words += f", {amount(change.asked, 'running job')} asked to end"
    if change.skipped:
        words += f", {amount(change.skipped, 'job')} skipped"
    if change.more:
        return f"{words}: more fit, run it again"
    return words + (f": only the newest {NEWEST:,} failed jobs were looked at, there are older ones" * change.older)
