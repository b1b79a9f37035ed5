"""`queue-kit failures`: failed jobs by what went wrong."""

import click
from sqlalchemy import URL

from queue_kit.cli.database import ANSWER, database_option, on_database
from queue_kit.cli.output import json_option, print_json, print_table
from queue_kit.failures import MAX_GROUPS, MAX_HEAD, NEWEST, failure_groups


@click.command(
    help=f"""Show the failed jobs by what went wrong, the largest group first.

    It looks at the {NEWEST:,} jobs that failed last, with --name at the {NEWEST:,} newest failed ones of that name, and
    says when there are others. Numbers, ids and quoted words of a message are …: what differs
    from job to job.

    \b
    Example:
      queue-kit failures
      queue-kit retry --name email.send --error-class KeyError
      queue-kit retry --message 'no order …'

    With --json: a list of {{"name", "error_class", "message", "count", "last_failed_at", "last_job_id", "more"}}.
    """
)
@database_option()
@click.option("--name", help="Only those of this name.")
@click.option("--limit", type=click.IntRange(1, MAX_GROUPS), default=20, show_default=True, help="How many groups.")
@json_option
def failures(url: URL, name: str | None, limit: int, as_json: bool) -> None:
    """Print the groups."""
    groups = on_database(url, lambda engine: failure_groups(engine, name=name, limit=limit), within=ANSWER)
    if as_json:
        print_json(groups)
        return
    print_table(
        ("COUNT", "NAME", "ERROR", "MESSAGE", "LAST (UTC)", "LAST ID"),
        [
            (each.count, each.name, each.error_class or None, each.message, each.last_failed_at, each.last_job_id)
            for each in groups
        ],
        most=MAX_HEAD,  # what is cut could not be pasted into `queue-kit retry`
    )
    if groups and groups[0].more:
        click.echo(f"more: only the newest {NEWEST:,} failed jobs were looked at", err=True)
