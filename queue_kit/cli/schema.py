"""`queue-kit migrate`."""

import click
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import migrate
from queue_kit.cli.database import database_option, on_database


@click.command("migrate")
@database_option()
def migrate_command(url: URL) -> None:
    """Bring the queue's tables to this version; harmless when they are there.

    \b
    Example:
      queue-kit migrate --database-url postgresql://app@localhost/app
    """

    async def upgrade(engine: AsyncEngine) -> tuple[int | None, int | None]:
        before = await migrate.schema_version(engine)
        await migrate.upgrade(engine)
        return before, await migrate.schema_version(engine)

    before, after = on_database(url, upgrade, create=True)
    if before == after:
        click.echo(f"the schema is at version {after} already")
    else:
        click.echo(f"the schema went from version {before or 0} to {after}")
