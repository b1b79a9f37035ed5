"""`queue-kit add`, `jobs` and `show`: adding a job and looking at jobs."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from sqlalchemy import URL, Row

from queue_kit._records import mends, time, unreadable
from queue_kit._statements.looking import job_heads, job_texts
from queue_kit._timings import timings_of
from queue_kit.cli.database import ANSWER, database_option, on_database
from queue_kit.cli.output import json_option, print_json, print_table, read_stdin, shown
from queue_kit.cli.records import record
from queue_kit.cli.timings import span_lines, took
from queue_kit.enqueue import add_job
from queue_kit.job import DEFAULT_PRIORITY, JobState
from queue_kit.operate import MAX_PAGE, get_job_text, list_job_texts

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _when(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | None:
    """A time: so long ago (`90s`, `15m`, `2h`, `3d`), or ISO 8601, which is UTC without a zone."""
    if text is None:
        return None
    try:
        if text[-1:] in _UNITS and text[:-1].isdecimal():
            return datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
        instant = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a span like 15m, 2h or 3d nor a time like 2026-05-01T12:00"
        ) from None
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


@click.command()
@click.argument("name")
@click.argument("data", metavar="[JSON]", default="{}")
@database_option()
@click.option("--priority", type=int, default=DEFAULT_PRIORITY, show_default=True, help="Lower runs first.")
@click.option("--delay", type=float, metavar="SECONDS", help="Run it so much later.")
@click.option("--unique-key", metavar="KEY", help="Add nothing while a live job holds this key.")
@click.option("--timeout", type=float, metavar="SECONDS", help="How long it may run.  [default: its handler's]")
@click.option("--max-retry-count", type=int, help="How many tries it has.  [default: its handler's]")
@json_option
def add(
    name: str,
    data: str,
    url: URL,
    priority: int,
    delay: float | None,
    unique_key: str | None,
    timeout: float | None,
    max_retry_count: int | None,
    as_json: bool,
) -> None:
    """Add a job, with a payload of JSON ("-" reads it from stdin), and print its id.

    \b
    Example:
      queue-kit add email.send '{"to": "a@b.c"}' --delay 60
      generate | queue-kit add report.make - --unique-key report

    With --json: {"id": 7}, or {"id": null} when a live job holds the key, which is no error.
    """
    text = read_stdin() if data == "-" else data
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"the payload is no JSON: {error}", param_hint="JSON") from None
    job_id = on_database(
        url,
        lambda engine: add_job(
            engine,
            name,
            payload,
            priority=priority,
            delay=delay,
            unique_key=unique_key,
            handler_timeout=timeout,
            max_retry_count=max_retry_count,
        ),
        within=ANSWER,
    )
    if as_json:
        print_json({"id": job_id})
    elif job_id is None:
        click.echo("nothing was added: a live job holds this unique key", err=True)
    else:
        click.echo(job_id)


@click.command()
@database_option()
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only those in this state.")
@click.option("--name", help="Only those of this name; say --since as well where it is rare.")
@click.option("--unique-key", metavar="KEY", help="Only those that hold or held this key.")
@click.option("--cron", "cron_name", metavar="NAME", help="Only the occurrences of this cron entry.")
@click.option(
    "--since", metavar="TIME", callback=_when, help="Only those added since: 15m, 2h, 3d ago, or 2026-05-01T12:00."
)
@click.option("--until", metavar="TIME", callback=_when, help="Only those added before.")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=20, show_default=True, help="How many.")
@click.option("--after", type=int, metavar="ID", help="The page after this one's last id.")
@json_option
def jobs(
    url: URL,
    state: str | None,
    name: str | None,
    unique_key: str | None,
    cron_name: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    after: int | None,
    as_json: bool,
) -> None:
    """List jobs, the newest first.

    \b
    Example:
      queue-kit jobs --state failed --name email.send --since 2h
      queue-kit jobs --unique-key order-7

    With --json: a list of jobs as `show --json` has them; the last id of a full page is the next one's --after.
    """
    rows = on_database(
        url,
        lambda engine: list_job_texts(
            engine,
            job_texts() if as_json else job_heads(),
            state=None if state is None else JobState(state),
            words={"name": name, "unique_key": unique_key, "cron_name": cron_name},
            created=(since, until),
            limit=limit,
            after=after,
        ),
        within=ANSWER,
    )
    if as_json:
        print_json([record(row) for row in rows])
        return
    print_table(
        ("ID", "STATE", "NAME", "PRIORITY", "TRIES", "DUE (UTC)", "LAST ERROR"),
        [
            (row.id, row.state, row.name, row.priority, row.retry_count, time(row.scheduled_at), _last_error(row))
            for row in rows
        ],
    )
    if len(rows) == limit:
        click.echo(f"more: --after {rows[-1].id}", err=True)


def _last_error(row: Row[Any]) -> str | None:
    if row.error_class is not None:
        return _head({"class": row.error_class, "message": row.message or ""})
    return _head({"reason": row.reason}) if row.reason else None


def _head(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)
    if "class" in error:
        message = str(error.get("message", "")).partition("\n")[0]
        return f"{error['class']}: {message}"
    return str(error.get("reason", "")).partition("\n")[0]


@click.command()
@click.argument("job_id", metavar="ID", type=int)
@database_option()
@json_option
def show(job_id: int, url: URL, as_json: bool) -> None:
    """Show a job: its times, its payload, and of each failed try how long it ran, its spans, and its error.

    \b
    Example:
      queue-kit show 1234
      queue-kit show 1234 --json | jq .errors[-1].traceback

    With --json: an object with the job's columns and its state; times in UTC. "unreadable" has the columns
    that only plain SQL can have written so, and why Python cannot read them.
    """
    row = on_database(url, lambda engine: get_job_text(engine, job_id), within=ANSWER)
    if row is None:
        raise click.ClickException(f"there is no job with id {job_id}")
    job = record(row)
    if as_json:
        print_json(job)
        return
    click.echo(click.style(f"job {job_id} {shown(job['name'])}: {job['state']}", bold=True))
    # What is only too deep to be printed is none of these: a worker may well be able to read it.
    statements = mends(job_id, unreadable(row))
    for column, why in job["unreadable"].items():
        click.echo(click.style(f"  {column} cannot be read: {shown(why)}", bold=True))
        if column in statements:
            click.echo(f"  to mend it, as one who may write the table: {statements[column]}")
    if "data" in statements:
        click.echo("  the payload is lost by that: write what it should be in the place of '{}'")
    for label, value in _facts(job):
        if value is not None:
            click.echo(f"  {label:<14} {shown(value)}")
    click.echo("payload")
    for line in json.dumps(job["data"], indent=2).splitlines():
        click.echo(f"  {shown(line)}")
    for error in job["errors"] if isinstance(job["errors"], list) else []:
        _print_failure(error if isinstance(error, dict) else {"reason": error})


def _print_failure(error: dict[str, Any]) -> None:
    timings = timings_of(error)
    said = f"error in try {shown(error.get('try'))} at {shown(error.get('at'))}, {took(timings)}"
    click.echo(click.style(said, bold=True))
    click.echo(f"  {shown(_head(error))}")
    if error.get("traceback"):
        for line in str(error["traceback"]).splitlines():  # may hold a message of many lines that look like others here
            click.echo(f"  | {shown(line)}")
    if timings.spans:
        click.echo("  spans")
        for line in span_lines(timings):
            click.echo(f"    {line}")


def _facts(job: dict[str, Any]) -> list[tuple[str, object]]:
    most, timeout, runs = job["max_retry_count"], job["handler_timeout"], job["state"] == JobState.running
    tries = f"{job['retry_count']} failed" + ("" if most is None else f" of {most}")
    return [
        ("created", job["created_at"]),
        ("due", job["scheduled_at"]),
        ("cron tick", job["cron_tick"]),
        ("changed", job["updated_at"]),
        ("leased until", job["lease_until"] if runs else None),
        ("worker", job["worker_id"] if runs else None),
        ("priority", job["priority"]),
        ("tries", tries),
        ("leases lost", job["lost"] or None),
        ("timeout", None if timeout is None else f"{timeout:g} s"),
        ("unique key", job["unique_key"]),
        ("cron entry", job["cron_name"]),
        ("asked to end", "yes" if job["cancel_requested"] else None),
    ]
