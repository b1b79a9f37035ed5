"""`queue-kit dashboard`."""

import click
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import migrate
from queue_kit.cli.database import database_option, on_database
from queue_kit.cli.output import log_to_stderr
from queue_kit.errors import ConfigurationError


@click.command()
@database_option()
@click.option("--port", type=click.IntRange(0, 65_535), default=8_765, show_default=True, help="0 takes a free one.")
@click.option("--read-only", is_flag=True, help="Show everything, change nothing.")
def dashboard(url: URL, port: int, read_only: bool) -> None:
    """Serve the dashboard to the browser of this machine, until Ctrl-C.

    The address that it prints ends with a key that is new each time: only who has it sees anything. Needs
    pip install 'queue-kit[dashboard]'.

    \b
    Example:
      queue-kit dashboard --read-only
    """

    async def serve(engine: AsyncEngine) -> None:
        try:
            from queue_kit.dashboard import _local
        except ImportError as error:
            raise ConfigurationError(str(error)) from None
        async with engine.connect() as connection:
            await migrate.check_schema(connection)
        log_to_stderr()
        await _local.serve(engine, port=port, may_act=not read_only, announce=click.echo)

    on_database(url, serve)
