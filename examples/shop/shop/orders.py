"""The order flow: an order, what it takes from the stock, and the job that confirms it are one transaction."""

from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from shop.jobs import Confirmation, confirm_order
from shop.models import Order, Product


class SoldOut(Exception):
    """There is less in stock than was ordered."""


async def place_order(session: AsyncSession, key: UUID, customer_id: int, product_id: int, quantity: int) -> int:
    """Place an order and commit; returns its id. An order that is there already is only found again."""
    try:
        cents = await take_from_stock(session, product_id, quantity)
        order = Order(key=key, customer_id=customer_id, product_id=product_id, quantity=quantity, cents=cents)
        session.add(order)
        await session.flush()  # gives the order its id
        order_id = order.id
        await confirm_order.add(session, Confirmation(order_id), unique_key=f"order:{order_id}")
        await session.commit()  # now there are all three; before, none
    except (IntegrityError, SoldOut):
        await session.rollback()
        placed = select(Order.id).where(Order.key == key, Order.customer_id == customer_id)
        if (earlier := await session.scalar(placed)) is None:
            raise
        return earlier
    return order_id


async def take_from_stock(session: AsyncSession, product_id: int, quantity: int) -> int:
    """What it costs. The condition is in the statement, so of two who want the last one, one gets it."""
    taken = await session.scalar(
        update(Product)
        .where(Product.id == product_id, Product.stock >= quantity)
        .values(stock=Product.stock - quantity)
        .returning(Product.cents)
        .execution_options(synchronize_session=False)
    )
    if taken is None:
        raise SoldOut
    return taken * quantity
