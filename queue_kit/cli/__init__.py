"""The command line: `queue-kit`. It is the only place that reads the environment, and it never prints a password.

Each module has the commands of one noun; `database.py` reaches the database for them, `output.py` prints.
"""

import click

from queue_kit import __version__
from queue_kit.cli.bench import bench
from queue_kit.cli.changes import cancel, retry
from queue_kit.cli.cron import cron
from queue_kit.cli.dashboard import dashboard
from queue_kit.cli.failures import failures
from queue_kit.cli.health import check
from queue_kit.cli.insights import insights
from queue_kit.cli.jobs import add, jobs, show
from queue_kit.cli.output import Printing
from queue_kit.cli.schema import migrate_command
from queue_kit.cli.work import work
from queue_kit.cli.workers import workers


@click.group(cls=Printing, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="queue-kit")
def main() -> None:
    """Durable background jobs for asyncio and SQLAlchemy.

    \b
    The database comes from --database-url or QUEUE_KIT_DATABASE_URL:
      postgresql://user@host/name    sqlite:///path/to/file.db

    \b
    From an alert to the job, its error, and another try:
      queue-kit insights
      queue-kit failures
      queue-kit show 1234
      queue-kit retry --name email.send --error-class ConnectionRefusedError

    \b
    Exit status: 0 all is well, 1 it failed or does not fit, 2 wrong usage.
    """


for _command in (
    add,
    bench,
    cancel,
    check,
    cron,
    dashboard,
    failures,
    insights,
    jobs,
    migrate_command,
    retry,
    show,
    work,
    workers,
):
    main.add_command(_command)
