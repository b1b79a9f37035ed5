"""The database before the first request: the shop's Alembic history, and something to sell."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, exists, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from shop.login import hash_password
from shop.models import Customer, Product

ALEMBIC = Path(__file__).parents[1] / "alembic.ini"
STAFF = "staff@example.org"


def history(connection: Connection) -> Config:
    """Alembic's configuration, for a command on this connection."""
    config = Config(ALEMBIC)
    config.attributes["connection"] = connection
    return config


async def upgrade(engine: AsyncEngine) -> None:
    """Bring the database to the newest revision, in one transaction. In production a deploy does this, once."""
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.upgrade(history(sync), "head"))


async def fill(engine: AsyncEngine, password: str) -> bool:
    """Fill an empty shop: an account of the staff, and products. Says whether it was empty."""
    async with AsyncSession(engine) as session:
        if await session.scalar(select(exists().select_from(Product))):
            return False
        session.add(Customer(email=STAFF, password=await hash_password(password), is_staff=True))
        session.add(Product(name="Tea, 100 g", cents=850, stock=500))
        session.add(Product(name="Cup of porcelain", cents=2400, stock=40))
        session.add(Product(name="Last teapot", cents=12900, stock=1))
        await session.commit()
    return True
