"""What the shop does in the background: it confirms orders, sends mail and reports at night.

`make_jobs` adds the library's own jobs, for files, sessions and the queue itself.
"""

import asyncio
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from queue_kit import CronJob, Event, HandlerFunction, Handlers, Job, add_job, exponential, job_queue_cleanup
from queue_kit.contrib.files import FileStore, file_jobs
from queue_kit.contrib.sessions import SessionStore, session_jobs
from shop.models import Customer, Order, Report, Sale, euros

CRON = [
    CronJob("report.daily", "0 1 * * *"),
    CronJob("queue_kit.queue.cleanup", "0 2 * * *"),
    CronJob("queue_kit.file.cleanup", "30 2 * * *"),
    CronJob("queue_kit.session_store.cleanup", "0 3 * * *"),
]

shop_jobs = Handlers()


@dataclass
class Confirmation:
    """Which order to confirm."""

    order_id: int


@dataclass
class Email:
    """A mail to one person."""

    to: str
    subject: str
    text: str


@shop_jobs.handler("order.confirm", max_retry_count=10)
async def confirm_order(_event: Event, session: AsyncSession, job: Job[Confirmation]) -> None:
    """Enter the sale in the books. It, the mail's job and this job's completion are one commit."""
    order = await session.get_one(Order, job.data.order_id)
    order.confirmed_at = datetime.now(UTC)
    session.add(Sale(order_id=order.id, cents=order.cents, sold_at=order.confirmed_at))
    text = f"Thank you! {order.quantity} x {order.product.name}, {euros(order.cents)}, will be with you soon."
    await add_email(session, Email(order.customer.email, f"Your order {order.id} is confirmed", text))


@shop_jobs.handler("report.daily")
async def report_sales(_event: Event, session: AsyncSession, job: Job[dict[str, object]]) -> None:
    """Add up the day before the tick, and tell the staff. A late or repeated run gives the same report."""
    midnight = job.scheduled_at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    of_the_day = (Sale.sold_at >= midnight - timedelta(days=1)) & (Sale.sold_at < midnight)
    total = select(func.count(), func.coalesce(func.sum(Sale.cents), 0)).where(of_the_day)
    sales, cents = (await session.execute(total)).one()
    report = await session.merge(Report(day=(midnight - timedelta(days=1)).date(), sales=sales, cents=cents))
    for to in await session.scalars(select(Customer.email).where(Customer.is_staff)):
        await add_email(session, Email(to, f"Sales of {report.day}", f"{sales} orders, {euros(cents)}"))


async def add_email(session: AsyncSession, email: Email) -> None:
    """Have a mail sent, when the transaction commits."""
    await add_job(session, "email.send", asdict(email))


def job_send_email(outbox: Path) -> HandlerFunction[Email]:
    """The handler that sends mail: into a folder, where a real one would talk to a service.

    It may run twice, when the process dies between the sending and the completion. The job's id makes both one mail:
    here as the file's name, elsewhere as the service's idempotency key.
    """

    async def send(_event: Event, _session: AsyncSession, job: Job[Email]) -> None:
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = "shop@example.org", job.data.to, job.data.subject
        mail["Message-ID"] = f"<{job.id}@shop.example.org>"
        mail.set_content(job.data.text)
        await asyncio.to_thread(_write, outbox / f"{job.id}.eml", bytes(mail))

    return send


def _write(file: Path, content: bytes) -> None:
    draft = file.with_suffix(".draft")
    draft.write_bytes(content)
    draft.replace(file)  # whole, or not at all


def make_jobs(store: FileStore, logins: SessionStore[Any], outbox: Path) -> Handlers:
    """All that the worker runs: the shop's own jobs, and those of the parts that it uses."""
    jobs = Handlers()
    for others in (shop_jobs, file_jobs(store), session_jobs(logins)):
        jobs.include(others)
    jobs.add("email.send", job_send_email(outbox), max_retry_count=20, retry_delay=exponential(base=2, cap=3600))
    jobs.add("queue_kit.queue.cleanup", job_queue_cleanup(queue_history_in_days=7))
    return jobs
