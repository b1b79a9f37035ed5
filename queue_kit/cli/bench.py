"""`queue-kit bench`."""

import click
from sqlalchemy import URL

from queue_kit import _bench
from queue_kit.cli.database import database_option, on_database
from queue_kit.cli.output import print_json


@click.command()
@database_option()
@click.option(
    "--jobs",
    type=click.IntRange(1, _bench.MOST_JOBS),
    default=5_000,
    show_default=True,
    help="How many to add and run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(url: URL, jobs: int, as_json: bool) -> None:
    """Measure how fast the queue is on the database, with jobs that do nothing.

    They are added to the real table, run by this process alone, and removed again, also on Ctrl-C.

    \b
    Example:
      queue-kit bench --jobs 20000
    """
    if not as_json:
        click.echo("measuring; it takes some seconds, more on a distant database", err=True)
    figures = on_database(url, lambda engine: _bench.measure(engine, jobs))
    if as_json:
        print_json(figures)
    else:
        click.echo(_bench.as_table(figures))
