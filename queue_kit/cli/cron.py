"""`queue-kit cron`: the recurring jobs."""

import click
from sqlalchemy import URL

from queue_kit.cli.database import ANSWER, database_option, on_database
from queue_kit.cli.output import json_option, print_json, print_table, shown
from queue_kit.cron_jobs import list_cron_jobs, pause_cron_job, resume_cron_job, run_cron_job


@click.group(invoke_without_command=True)
@click.pass_context
@database_option(required=False)
@json_option
def cron(context: click.Context, url: URL | None, as_json: bool) -> None:
    """List the cron entries, or pause, resume and run one.

    \b
    Example:
      queue-kit cron
      queue-kit cron run report.daily

    With --json: a list of objects with name, expression, timezone, paused, next_at, job_id, job_state, last_job_id,
    last_state, last_ended_at, last_completed_at, priority, data, handler_timeout.
    """
    if context.invoked_subcommand is not None:
        return
    if url is None:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    entries = on_database(url, list_cron_jobs, within=ANSWER)
    if as_json:
        print_json(entries)
        return
    print_table(
        ("NAME", "EXPRESSION", "TIME ZONE", "NEXT (UTC)", "NOW", "LAST RUN", "ENDED (UTC)"),
        [
            (
                each.name,
                each.expression,
                each.timezone,
                each.next_at,
                "paused" if each.paused and each.job_state is None else each.job_state,
                each.last_state,
                each.last_ended_at,
            )
            for each in entries
        ],
    )


@cron.command()
@click.argument("name")
@database_option()
def pause(name: str, url: URL) -> None:
    """Let an entry start no more. An occurrence that runs goes on, one that waits is cancelled.

    \b
    Example:
      queue-kit cron pause report.daily
    """
    on_database(url, lambda engine: pause_cron_job(engine, name), within=ANSWER)
    click.echo(f"{shown(name)} is paused")


@cron.command()
@click.argument("name")
@database_option()
def resume(name: str, url: URL) -> None:
    """Let a paused entry go on, with its first tick after now.

    \b
    Example:
      queue-kit cron resume report.daily
    """
    on_database(url, lambda engine: resume_cron_job(engine, name), within=ANSWER)
    click.echo(f"{shown(name)} goes on")


@cron.command()
@click.argument("name")
@database_option()
@json_option
def run(name: str, url: URL, as_json: bool) -> None:
    """Run an entry now, paused or not, and print the job's id. Its tick still comes.

    \b
    Example:
      queue-kit cron run report.daily

    With --json: {"id": 7}.
    """
    job_id = on_database(url, lambda engine: run_cron_job(engine, name), within=ANSWER)
    if as_json:
        print_json({"id": job_id})
    else:
        click.echo(job_id)
