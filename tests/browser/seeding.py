"""A queue as one finds it on an ordinary day: what the pages show in tests and on screenshots."""

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from queue_kit import CronJob, pause_cron_job, register_cron_jobs
from queue_kit.models import CANCELLED, COMPLETED, FAILED, READY, SCHEDULED, HistoryRow, JobRow, WorkerRow

NAMES = {  # how often in a minute, how long a run takes
    "email.send": (46, 0.21),
    "order.confirm": (18, 0.08),
    "invoice.render": (9, 1.7),
    "image.resize": (22, 0.64),
    "webhook.deliver": (31, 0.35),
    "search.index": (12, 0.12),
}
CRON = [
    CronJob("queue_kit.queue.cleanup", "0 1 * * *"),
    CronJob("queue_kit.queue.insights", "0 * * * *"),
    CronJob("report.daily", "0 6 * * *", timezone="Europe/Amsterdam"),
    CronJob("rates.fetch", "*/15 * * * *"),
    CronJob("newsletter.weekly", "0 9 * * mon", timezone="Europe/Berlin"),
]
WORKERS = [UUID(int=each, version=4) for each in range(1, 4)]

TRACEBACK = """\
Traceback (most recent call last):
  File "shop/jobs/mail.py", line 41, in send_email
    await client.deliver(message)
  File "shop/clients/smtp.py", line 118, in deliver
    reader, writer = await asyncio.open_connection(self.host, 587)
  File "asyncio/streams.py", line 48, in open_connection
    transport, _ = await loop.create_connection(
ConnectionRefusedError: [Errno 111] Connect call failed ('10.0.4.17', 587)
"""
ERRORS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "email.send": (("ConnectionRefusedError", "[Errno 111] Connect call failed ('10.0.4.17', 587)", TRACEBACK),),
    "webhook.deliver": (
        ("TimeoutError", "no answer from https://hooks.example.org/orders within 10 s", ""),
        ("HTTPStatusError", "503 Service Unavailable for https://hooks.example.com/in/8841", ""),
    ),
    "invoice.render": (("InvalidPayload", "data at $.lines[3].amount: Input should be a valid decimal", ""),),
    "image.resize": (("DeadlineExceeded", "the handler's 30 s are over", ""),),
}


async def seed(engine: AsyncEngine) -> dict[str, int]:
    """Fill an empty queue; returns the ids of some jobs worth a look."""
    dice = random.Random(7)
    now = datetime.now(UTC)
    await register_cron_jobs(engine, CRON)
    await pause_cron_job(engine, "newsletter.weekly")
    jobs, known = _jobs(dice, now)
    async with engine.begin() as connection:
        await connection.execute(insert(JobRow.__table__), jobs)
        await connection.execute(insert(HistoryRow.__table__), _history(dice, now))
        await connection.execute(insert(WorkerRow.__table__), _workers(now))
    return known


def _jobs(dice: random.Random, now: datetime) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows: list[dict[str, Any]] = []
    known: dict[str, int] = {}

    def add(name: str, status: int, age: float, **values: Any) -> int:
        at = now - timedelta(seconds=age)
        number = 48_200 + len(rows)
        row = {"id": number, "name": name, "status": status, "created_at": at, "scheduled_at": at, "updated_at": at}
        optional = {
            "unique_key": None,
            "errors": None,
            "max_retry_count": None,
            "worker_id": None,
            "cron_name": None,
            "retry_count": 0,
        }
        rows.append(row | {"data": _payload(dice, name), "lease_until": at} | optional | values)
        return number

    names = list(NAMES)
    for at in range(400):
        add(
            dice.choices(names, [rate for rate, _ in NAMES.values()])[0],
            COMPLETED,
            3_600 - at * 8,
            retry_count=at % 23 == 0,
        )
    for name, count in (("email.send", 37), ("webhook.deliver", 15), ("invoice.render", 4), ("image.resize", 2)):
        for at in range(count):
            kind, message, traceback = ERRORS[name][at % len(ERRORS[name])]
            ago = 60 + dice.random() * 2_400
            errors = [
                {"at": (now - timedelta(seconds=ago + 40 - 30 * each)).isoformat(), "try": each + 1, "class": kind}
                | {
                    "message": message,
                    "traceback": traceback or f"Traceback (most recent call last):\n{kind}: {message}\n",
                }
                for each in range(2)
            ]
            known[name] = add(name, FAILED, ago, retry_count=2, max_retry_count=2, errors=errors)
    known["cancelled"] = add("newsletter.weekly", CANCELLED, 900)
    for name, age in (("rates.fetch", 640), ("report.daily", 29_000), ("queue_kit.queue.insights", 1_900)):
        add(name, FAILED if name == "rates.fetch" else COMPLETED, age, cron_name=name)
    for at in range(9):
        known["scheduled"] = add(
            "invoice.render",
            SCHEDULED,
            100,
            scheduled_at=now + timedelta(hours=1 + at * 5),
            unique_key=f"invoice-{7_100 + at}",
        )
    for at in range(14):
        known["ready"] = add(dice.choice(names[:4]), READY, 14 - at)
    for at in range(3):
        known["unknown"] = add("legacy.export", READY, 700 - at * 60)
    for at, worker in enumerate((WORKERS[0], WORKERS[0], WORKERS[1], WORKERS[2], WORKERS[2])):
        lease = now + timedelta(hours=1)
        known["running"] = add(names[at % 5], READY, 3 + at, worker_id=worker, lease_until=lease, retry_count=at == 2)
    return rows, known


def _payload(dice: random.Random, name: str) -> dict[str, Any]:
    number = dice.randrange(10_000, 99_999)
    if name == "email.send":
        return {
            "to": f"customer{number}@example.org",
            "template": "order-shipped",
            "locale": "nl",
            "order": {"id": number, "total": "84.50", "currency": "EUR", "express": number % 2 == 0, "coupon": None},
            "smtp_password": "not for everybody",
        }
    return {"id": number}


def _history(dice: random.Random, now: datetime) -> list[dict[str, Any]]:
    rows = []
    start = now.replace(second=0, microsecond=0)
    for minute in range(1, 1_441):
        at = start - timedelta(minutes=minute)
        day = 0.62 + 0.38 * math.sin((at.hour + at.minute / 60 - 8) / 24 * 2 * math.pi)
        trouble = 24 <= minute <= 33
        for name, (rate, seconds) in NAMES.items():
            runs = max(int(rate * day * (0.8 + 0.4 * dice.random())), 1)
            is_down = trouble and name == "email.send"
            failed, retried = (int(runs * 0.25), int(runs * 0.5)) if is_down else (0, int(dice.random() < 0.2))
            took = seconds * (0.85 + 0.3 * dice.random()) * (2.2 if is_down else 1)
            waited = 0.05 + 0.05 * dice.random() + (0.9 if trouble else 0)
            rows.append(
                {"minute": at, "name": name, "completed": runs - failed - retried, "failed": failed, "retried": retried}
                | {"run_seconds": runs * took, "longest_run": took * 4, "wait_seconds": runs * waited}
                | {"longest_wait": waited * 3}
            )
    return rows


def _workers(now: datetime) -> list[dict[str, Any]]:
    names = [*NAMES, *(entry.name for entry in CRON)]
    return [
        {"id": worker, "label": f"web-{at}:{4_100 + at}", "host": f"web-{at}", "pid": 4_100 + at, "names": names}
        | {"started_at": now - timedelta(hours=5 * at), "seen_at": now - timedelta(seconds=2), "running": 2}
        for at, worker in enumerate(WORKERS, start=1)
    ]
