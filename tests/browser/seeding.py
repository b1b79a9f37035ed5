"""A queue as one finds it on an ordinary day: what the pages show in tests and on screenshots."""

import math
import random
from dataclasses import dataclass
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
TIMINGS: dict[str, dict[str, Any]] = {
    "ConnectionRefusedError": {
        "seconds": 3.214,
        "spans": [
            {"name": "order.load", "depth": 0, "start": 0.004, "seconds": 0.212},
            {"name": "template.render", "depth": 0, "start": 0.218, "seconds": 0.631},
            {"name": "template.fonts", "depth": 1, "start": 0.301, "seconds": 0.417},
            {"name": "mail.deliver", "depth": 0, "start": 0.851, "seconds": 2.361},
            {"name": "smtp.connect", "depth": 1, "start": 0.853, "seconds": 1.02},
            {"name": "smtp.connect", "depth": 1, "start": 2.178, "seconds": 1.033},
        ],
    },
    "DeadlineExceeded": {
        "seconds": 30.018,
        "aborted": 30.001,
        "spans": [
            {"name": "image.fetch", "depth": 0, "start": 0.003, "seconds": 2.84},
            {"name": "image.scale", "depth": 0, "start": 2.845, "seconds": 27.171, "aborted": 30.001},
        ],
    },
}
"""Where failed tries spent their time."""


@dataclass
class Known:
    """Ids of jobs that are worth a look, each of another state."""

    scheduled: int = 0
    running: int = 0
    failed: int = 0
    cancelled: int = 0


async def seed(engine: AsyncEngine, known: Known) -> None:
    """Fill an empty queue."""
    dice = random.Random(7)
    now = datetime.now(UTC)
    await register_cron_jobs(engine, CRON)
    await pause_cron_job(engine, "newsletter.weekly")
    jobs = Jobs(dice, now)
    jobs.finish()
    jobs.fail(known)
    jobs.wait(known)
    async with engine.begin() as connection:
        await connection.execute(insert(JobRow.__table__), jobs.rows)
        await connection.execute(insert(HistoryRow.__table__), _history(dice, now))
        await connection.execute(insert(WorkerRow.__table__), _workers(now))


class Jobs:
    """The rows of jobs."""

    def __init__(self, dice: random.Random, now: datetime) -> None:
        self.rows: list[dict[str, Any]] = []
        self._dice = dice
        self._now = now

    def add(self, name: str, status: int, age: float, **values: Any) -> int:
        at = self._now - timedelta(seconds=age)
        columns = ("unique_key", "errors", "max_retry_count", "worker_id", "cron_name")
        row = dict.fromkeys(columns) | dict.fromkeys(("created_at", "scheduled_at", "updated_at", "lease_until"), at)
        row |= {"id": 48_200 + len(self.rows), "name": name, "status": status, "retry_count": 0}
        self.rows.append(row | {"data": _payload(self._dice, name)} | values)
        return row["id"]

    def finish(self) -> None:
        names = self._dice.choices(list(NAMES), [rate for rate, _ in NAMES.values()], k=400)
        for at, name in enumerate(names):
            self.add(name, COMPLETED, 3_600 - at * 8, retry_count=int(at % 23 == 0))
        for name, age in (("report.daily", 29_000), ("queue_kit.queue.insights", 1_900)):
            self.add(name, COMPLETED, age, cron_name=name)

    def fail(self, known: Known) -> None:
        for name, count in (("webhook.deliver", 15), ("invoice.render", 4), ("image.resize", 2), ("email.send", 37)):
            for at in range(count):
                age = 60 + self._dice.random() * 2_400
                errors = [self._error(ERRORS[name][at % len(ERRORS[name])], age, attempt) for attempt in (1, 2)]
                known.failed = self.add(name, FAILED, age, retry_count=2, max_retry_count=2, errors=errors)
        errors = [self._error(("TimeoutError", "no rates within 20 s", ""), 640, 1)]
        self.add("rates.fetch", FAILED, 640, cron_name="rates.fetch", retry_count=1, max_retry_count=1, errors=errors)
        known.cancelled = self.add("newsletter.weekly", CANCELLED, 900)

    def _error(self, error: tuple[str, str, str], age: float, attempt: int) -> dict[str, Any]:
        kind, message, traceback = error
        at = (self._now - timedelta(seconds=age + 40 * (2 - attempt))).isoformat()
        traceback = traceback or f"Traceback (most recent call last):\n{kind}: {message}\n"
        record = {"at": at, "try": attempt, "class": kind, "message": message, "traceback": traceback}
        return record | TIMINGS.get(kind, {"seconds": 0.031})

    def wait(self, known: Known) -> None:
        for at in range(9):
            due = self._now + timedelta(hours=1 + at * 5)
            known.scheduled = self.add(
                "invoice.render", SCHEDULED, 100, scheduled_at=due, unique_key=f"invoice-{7_100 + at}"
            )
        for at, name in enumerate(self._dice.choices(list(NAMES), k=14)):
            self.add(name, READY, 14 - at)
        for at in range(3):
            self.add("legacy.export", READY, 700 - at * 60)
        lease = self._now + timedelta(hours=1)
        for at, (name, worker) in enumerate(zip(NAMES, [*WORKERS, *WORKERS], strict=False)):
            known.running = self.add(name, READY, 3 + at, worker_id=worker, lease_until=lease, retry_count=int(at == 2))


def _payload(dice: random.Random, name: str) -> dict[str, Any]:
    number = dice.randrange(10_000, 99_999)
    if name == "email.send":
        return {
            "to": f"customer{number}@example.org",
            "template": "order-shipped",
            "locale": "nl",
            "order": {"id": number, "total": "84.50", "currency": "EUR", "express": number % 2 == 0, "coupon": None},
            "smtp_password": "not for everybody",  # pragma: allowlist secret
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
