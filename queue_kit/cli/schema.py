"""`queue-kit migrate`."""

import click
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import migrate
from queue_kit.cli.database import database_option, on_database


@click.command("migrate")
@click.option("--with", "extras", type=click.Choice(migrate.EXTRAS), multiple=True, help="An extra's tables as well.")
@database_option()
def migrate_command(url: URL, extras: tuple[str, ...]) -> None:
    """Bring the queue's tables to this version; harmless when they are there.

    \b
    Example:
      queue-kit migrate --database-url postgresql://app@localhost/app
      queue-kit migrate --with files --with sessions
    """

    async def versions(engine: AsyncEngine) -> dict[str, int | None]:
        found = {f"the schema of {extra}": await migrate.schema_version(engine, extra) for extra in extras}
        return {"the schema": await migrate.schema_version(engine)} | found

    async def upgrade(engine: AsyncEngine) -> tuple[dict[str, int | None], dict[str, int | None]]:
        before = await versions(engine)
        await migrate.upgrade(engine, extras)
        return before, await versions(engine)

    before, after = on_database(url, upgrade, create=True)
    for what, version in after.items():
        if before[what] == version:
            click.echo(f"{what} is at version {version} already")
        else:
            click.echo(f"{what} went from version {before[what] or 0} to {version}")
