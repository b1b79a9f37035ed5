"""`queue-kit workers`: who is there to run jobs."""

import click
from sqlalchemy import URL

from queue_kit.cli.database import ANSWER, database_option, on_database
from queue_kit.cli.output import duration, json_option, print_json, print_table
from queue_kit.fleet import list_workers


@click.command()
@database_option()
@json_option
def workers(url: URL, as_json: bool) -> None:
    """List the workers that are alive, with how many jobs they run, and hold among the first 10,000 of the order.

    One that was killed shows for 45 seconds more.

    \b
    Example:
      queue-kit workers

    With --json: a list of {"id", "label", "host", "pid", "names", "started_at", "seen_at", "seen_seconds_ago",
    "running", "jobs": [{"id", "name", "attempt"}]}.
    """
    found = on_database(url, list_workers, within=ANSWER)
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "LABEL", "HOST", "PID", "RUNNING", "HOLDS", "SEEN AGO", "SINCE (UTC)", "NAMES"),
        [
            (
                each.id,
                each.label,
                each.host,
                each.pid,
                each.running,
                len(each.jobs),
                duration(each.seen_seconds_ago),
                each.started_at,
                ", ".join(each.names),
            )
            for each in found
        ],
    )
