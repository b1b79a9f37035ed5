"""`python -m shop`: prepare the database, then serve until Ctrl-C or SIGTERM, with the worker inside."""

import asyncio
import os
import secrets

import uvicorn

from queue_kit import engine_from_url
from shop import prepare
from shop.app import create_app
from shop.settings import Settings


async def prepare_database(settings: Settings) -> None:
    """Migrate, and fill an empty shop. Without SHOP_STAFF_PASSWORD the staff gets one here, shown this once."""
    engine = engine_from_url(settings.database_url)
    await prepare.upgrade(engine)
    chosen = os.environ.get("SHOP_STAFF_PASSWORD")
    password = chosen or secrets.token_urlsafe(12)
    if await prepare.fill(engine, password) and not chosen:
        print(f"the staff logs in as {prepare.STAFF} with {password}", flush=True)
    await engine.dispose()


def main() -> None:
    """Start the shop."""
    settings = Settings.from_environment()
    asyncio.run(prepare_database(settings))
    uvicorn.run(create_app(settings), host="127.0.0.1", port=int(os.environ.get("SHOP_PORT", "8000")))


if __name__ == "__main__":
    main()
